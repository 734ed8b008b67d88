//! Settings of groups and transactions reach whoever decides.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidemark_client::{ErrorCode, TransactionError, TransactionalConfig};
use tidemark_tests::cluster;

use super::rig::{Worker, block_on, client, config, create, group};

#[test]
fn a_full_group_and_a_transaction_for_too_long_are_refused() -> Result<()> {
    let config = config(1).flag("group-members-max", "1").flag("transaction-timeout-max", "1s");
    cluster::with(config, |cluster| {
        block_on(async {
            let client = client(cluster).await?;
            create(&client, "orders", 2).await?;
            let first = Worker::start(&client, group("billing", "orders"));
            first.await_seen("it has all", |seen| seen.assigned.len() == 2).await?;
            let second = Worker::start(&client, group("billing", "orders"));
            let refused = second.await_seen("it is refused", |seen| seen.failure.is_some()).await?;
            let failure = refused.failure.context("a failure")?;
            ensure!(failure.contains("has 1 members and takes no more"), "{failure}");
            // It would ask again and again without end, since every poll tells.
            drop(second.close().await);
            first.close().await?;

            let longer = TransactionalConfig {
                timeout: Duration::from_secs(2),
                ..TransactionalConfig::new("one")
            };
            let refused = client.transactional_producer(longer).await.err();
            let code = refused.as_ref().and_then(TransactionError::code);
            ensure!(code == Some(ErrorCode::InvalidTransactionTimeout), "{refused:?}");
            Ok(())
        })
    })
}
