//! What callers are told when nothing is decided, and where to go instead.

use tidemark_protocol::{ErrorCode, Failure, NodeId};

use crate::quorum::ProposeError;

/// In front of the id of the node that leads, in the message of a refusal.
const LEADER_MARK: &str = "the active controller is node ";

/// The refusal of a node that is not the active controller. Its message names the node that is, if it is known.
pub fn not_controller(leader: Option<NodeId>) -> Failure {
    let message = match leader {
        Some(leader) => format!("{LEADER_MARK}{leader}"),
        None => "there is no active controller at the moment".to_owned(),
    };
    Failure::new(ErrorCode::NotController, message)
}

/// The node that a refusal sends to, if it names one.
pub fn leader_hint(failure: &Failure) -> Option<NodeId> {
    let id = failure.message.strip_prefix(LEADER_MARK)?;
    id.parse().ok().filter(|_| failure.code == ErrorCode::NotController)
}

pub(super) fn not_proposed(error: &ProposeError, leader: Option<NodeId>) -> Failure {
    let code = match error {
        ProposeError::NotLeader => return not_controller(leader),
        ProposeError::TooLarge { .. } => ErrorCode::TooLarge,
        ProposeError::Full => ErrorCode::DiskFull,
        ProposeError::Failed(_) => ErrorCode::StorageFailed,
    };
    Failure::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_node_to_go_to() {
        assert_eq!(leader_hint(&not_controller(Some(7))), Some(7));
        assert_eq!(leader_hint(&not_controller(None)), None);
        let other = Failure::new(ErrorCode::Timeout, not_controller(Some(7)).message);
        assert_eq!(leader_hint(&other), None);
    }
}
