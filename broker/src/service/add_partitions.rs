//! Add partitions: answers when the new ones can be produced to.

use std::sync::Arc;

use tidemark_controller::{AddPartitions, Answer, Command};
use tidemark_protocol::{
    Failure,
    messages::{AddPartitionsRequest, AddPartitionsResponse},
};

use super::{change_metadata, require_disk, wrong_answer};
use crate::{broker::Broker, coordinators::topics::refuse_internal};

pub(crate) async fn add_partitions(
    broker: Arc<Broker>,
    request: AddPartitionsRequest,
) -> Result<AddPartitionsResponse, Failure> {
    refuse_internal(&request.name, "given more partitions")?;
    if !request.validate_only {
        require_disk(&broker)?;
    }
    let command = AddPartitions {
        name: request.name,
        partitions: request.partitions,
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
        validate_only: request.validate_only,
    };
    match change_metadata(&broker, Command::AddPartitions(command), request.timeout_ms).await? {
        Answer::PartitionsAdded(response) => Ok(response),
        other => Err(wrong_answer(&other)),
    }
}
