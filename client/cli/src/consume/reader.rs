//! Whoever reads standard output, and the moment they go away.
//!
//! A write would find out, but a command that follows a silent topic writes nothing: `tidemark consume orders | head -1`
//! has to end when `head` does.

use std::{io, os::fd::AsFd as _};

use tokio::{io::Interest, net::unix::pipe};

/// Completes when the other end of the pipe on standard output is closed; never, when there is no pipe.
pub(super) async fn gone() {
    // Unchecked, because the checked form makes the pipe non-blocking for every process that shares it. Nothing is written
    // through this handle. A regular file cannot be waited for and fails here; its readers do not go away.
    let watched =
        io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked);
    if let Ok(watched) = watched
        && watched.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
