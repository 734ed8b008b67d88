//! What a process opens when it starts.

use std::fmt;

use super::{Arc, Boot, Controller, Image, Io, Node, Steered};

/// Why a process did not start.
#[derive(Debug)]
pub struct StartError(pub String);

impl fmt::Display for StartError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The node's controller, if it has one, with what it has recovered.
pub(super) fn open_controller(
    node: &Node,
    boot: &Boot,
    broker: &Steered,
    io: &mut Io<'_>,
) -> Result<(Option<Controller>, Arc<Image>), StartError> {
    if !boot.controllers.contains(&node.id) {
        return Ok((None, Arc::default()));
    }
    let dir = broker.metadata_dir();
    let opened = Controller::open(&node.disk, &dir, node.voter(), boot.voters.as_deref(), io);
    let (controller, image) = opened.map_err(|error| StartError(error.to_string()))?;
    Ok((Some(controller), image))
}
