//! The entrance: a connected client, from which producers, consumers and the admin are made.

use std::sync::Arc;

use crate::{
    admin::Admin,
    cluster::Cluster,
    config::ClientConfig,
    consumer::{Consumer, ConsumerConfig},
    error::ConnectError,
    group::{GroupConfig, GroupConsumer},
    producer::{Producer, ProducerConfig},
};

/// A cluster within reach. Clones share connections and what is known of the cluster.
///
/// Needs a Tokio runtime, and its producers and consumers must be used within the same one. Connections
/// close when the client and everything made from it are dropped.
///
/// ```
/// # use tidemark_client::{Client, ClientConfig, testing::FakeBroker};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = FakeBroker::start().await?;
/// # let address = broker.address();
/// let client = Client::connect(ClientConfig::new(address)).await?;
/// println!("connected to cluster {}", client.cluster_id());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    cluster: Arc<Cluster>,
}

impl Client {
    /// Learns the cluster from the first bootstrap broker that answers. Tries each once: a program that
    /// wants to wait for its cluster calls again while the error is retriable.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        Ok(Self { cluster: Arc::new(Cluster::connect(config).await?) })
    }

    /// The identity of the cluster, chosen when it was first started.
    pub fn cluster_id(&self) -> Arc<str> {
        self.cluster.metadata().cluster_id.clone()
    }

    /// Topics, settings and brokers.
    pub fn admin(&self) -> Admin {
        Admin::new(self.cluster.clone())
    }

    /// A producer with its own buffer.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn producer(&self, config: ProducerConfig) -> Producer {
        Producer::start(self.cluster.clone(), config)
    }

    /// A member of a consumer group, with connections of its own. It joins at once, and reads while it is polled.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn group_consumer(&self, config: GroupConfig) -> GroupConsumer {
        GroupConsumer::start(self.cluster.clone(), config)
    }

    /// A consumer with nothing assigned, with connections of its own.
    pub fn consumer(&self, config: ConsumerConfig) -> Consumer {
        Consumer::new(self.cluster.clone(), config)
    }
}
