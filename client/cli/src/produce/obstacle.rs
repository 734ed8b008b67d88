//! Saying what keeps records from being delivered while it lasts. The producer repeats in silence, which is right for a program;
//! a person wants to know why nothing happens.

use std::{convert::Infallible, time::Duration};

use tidemark_client::{ProduceError, Producer};
use tidemark_protocol::ErrorCode;

use crate::{exit::CliError, output, quantity};

/// What is over sooner, like a failover, is not worth a word.
const WORTH_SAYING_AFTER: Duration = Duration::from_secs(2);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Never returns; to be dropped when all is sent.
pub(super) async fn tell(producer: &Producer) -> Infallible {
    let mut teller = Teller::default();
    loop {
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        if let Some(line) = teller.line(producer.obstacle()) {
            output::note(line);
        }
    }
}

/// What has been said, so that nothing is said twice.
#[derive(Debug, Default)]
struct Teller {
    /// The kind of the last one told; `None` when nothing is in the way.
    told: Option<&'static str>,
}

impl Teller {
    fn line(&mut self, obstacle: Option<(Duration, ProduceError)>) -> Option<String> {
        let obstacle = obstacle.filter(|(waited, _)| *waited >= WORTH_SAYING_AFTER);
        let Some((waited, error)) = obstacle else {
            return self.told.take().map(|_| "delivered again".to_owned());
        };
        let kind = error.code().map_or("no answer", ErrorCode::name);
        if self.told.replace(kind) == Some(kind) {
            return None;
        }
        let error = CliError::from(error);
        let hint = error.hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        let waited = quantity::duration(waited);
        Some(format!("trying again for {waited}: {}{hint}", error.message))
    }
}

#[cfg(test)]
mod tests {
    use tidemark_client::RequestError;
    use tidemark_protocol::Failure;

    use super::*;

    fn obstacle(seconds: u64, code: ErrorCode) -> (Duration, ProduceError) {
        let source = RequestError::Refused(Failure::new(code, "2 of 3 replicas are missing"));
        let (topic, partition, maybe_written) = ("orders".into(), 3, false);
        let error = ProduceError::Request { topic, partition, source, maybe_written };
        (Duration::from_secs(seconds), error)
    }

    #[test]
    fn an_obstacle_is_told_once_when_it_lasts_and_again_when_it_is_over_or_another() {
        let mut teller = Teller::default();
        let few = ErrorCode::NotEnoughReplicas;
        assert_eq!(teller.line(None), None);
        assert_eq!(teller.line(Some(obstacle(1, few))), None);
        let told = teller.line(Some(obstacle(3, few))).unwrap();
        for says in ["trying again for 3.00s", "orders/3", "replicas are missing", "cluster health"]
        {
            assert!(told.contains(says), "{says:?} is missing in {told}");
        }
        assert_eq!(teller.line(Some(obstacle(4, few))), None);
        assert!(teller.line(Some(obstacle(5, ErrorCode::DiskFull))).is_some());
        assert_eq!(teller.line(None).as_deref(), Some("delivered again"));
        assert_eq!(teller.line(None), None);
    }
}
