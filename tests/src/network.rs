//! The network between the nodes of a cluster under test, and how its links are cut.
//!
//! Where root may, every node has a network namespace of its own and links are cut per pair and direction, without a word
//! to either side. Elsewhere there is one proxy in front of each node, which does not know who is calling: it can do
//! more to a connection, but not to one peer alone. Nothing here decides what to cut.

pub mod namespaces;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result};
use tidemark_protocol::NodeId;

use self::namespaces::World;
use crate::proxy::{Proxy, Rules};

/// Where nodes listen inside their namespaces.
const DATA_PORT: u16 = 9092;
const HTTP_PORT: u16 = 9644;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Clients, all of them: whatever runs in the test's own process, or was started by it.
    Clients,
    Node(NodeId),
}

/// How the nodes of a cluster reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces where they can be made, else proxies.
    Best,
    Proxies,
}

/// Addresses of one node.
#[derive(Clone, Debug)]
pub struct Place {
    pub listen: SocketAddr,
    pub http_listen: SocketAddr,
    /// Where others, clients included, reach it.
    pub advertised: SocketAddr,
    pub namespace: Option<PathBuf>,
}

/// The links of one cluster.
///
/// With namespaces, the thread that makes it lives in the world of that cluster until it is dropped, and so does every
/// thread and program started from it: ordinary sockets lead to the nodes.
#[derive(Debug)]
pub enum Network {
    Namespaces(World),
    Proxies(BTreeMap<NodeId, Proxy>),
}

impl Network {
    pub fn new(kind: Kind) -> Result<Self> {
        if kind == Kind::Best && namespaces::available() {
            return Ok(Self::Namespaces(World::enter()?));
        }
        Ok(Self::Proxies(BTreeMap::new()))
    }

    /// Whether links can be cut for one pair of nodes, and in one direction.
    pub fn tells_pairs_apart(&self) -> bool {
        matches!(self, Self::Namespaces(_))
    }

    /// Connects one more node.
    pub fn add(&mut self, node: NodeId) -> Result<Place> {
        match self {
            Self::Namespaces(world) => {
                let namespace = Some(world.add(node)?);
                let address = namespaces::address(End::Node(node));
                let listen = SocketAddr::from((address, DATA_PORT));
                let http_listen = SocketAddr::from((address, HTTP_PORT));
                Ok(Place { listen, http_listen, advertised: listen, namespace })
            }
            Self::Proxies(proxies) => {
                let (listen, http_listen) = free_addresses()?;
                let proxy = Proxy::start(listen, u64::from(node))?;
                let advertised = proxy.address();
                proxies.insert(node, proxy);
                Ok(Place { listen, http_listen, advertised, namespace: None })
            }
        }
    }

    /// Loses everything that `from` sends to `to` from now on. Between proxies the source does not matter: whatever is
    /// sent to that node, and for [`End::Clients`] whatever all nodes answer, is lost.
    pub fn cut(&mut self, from: End, to: End) -> Result<()> {
        match self {
            Self::Namespaces(world) => world.cut(from, to),
            Self::Proxies(proxies) => {
                for (node, proxy) in proxies {
                    if to == End::Node(*node) {
                        proxy.change(|rules| rules.to_target.swallow = true);
                    } else if to == End::Clients && from == End::Node(*node) {
                        proxy.change(|rules| rules.from_target.swallow = true);
                    }
                }
                Ok(())
            }
        }
    }

    /// Loses everything between `node` and all others, clients included.
    pub fn isolate(&mut self, node: NodeId) -> Result<()> {
        match self {
            Self::Namespaces(world) => world.isolate(node),
            Self::Proxies(_) => {
                self.cut(End::Clients, End::Node(node))?;
                self.cut(End::Node(node), End::Clients)
            }
        }
    }

    /// Every link as it was.
    pub fn heal(&mut self) -> Result<()> {
        match self {
            Self::Namespaces(world) => world.heal(),
            Self::Proxies(proxies) => {
                for proxy in proxies.values() {
                    proxy.set(Rules::default());
                }
                Ok(())
            }
        }
    }

    /// The proxy in front of a node, where there is one.
    pub fn proxy(&self, node: NodeId) -> Option<&Proxy> {
        match self {
            Self::Namespaces(_) => None,
            Self::Proxies(proxies) => proxies.get(&node),
        }
    }
}

/// Two addresses that were free a moment ago, held together so that they differ.
fn free_addresses() -> Result<(SocketAddr, SocketAddr)> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (data, http) = (TcpListener::bind(local)?, TcpListener::bind(local)?);
    Ok((data.local_addr()?, http.local_addr().context("bound")?))
}
