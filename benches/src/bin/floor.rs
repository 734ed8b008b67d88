//! `floor`: the program that does only what physics demands. See the library's `floor` module.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;

/// Stores batches and sends them back, with nothing of a broker around it.
#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 picks a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Folder for the partition files, one per storing connection.
    #[arg(long)]
    dir: PathBuf,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    tidemark_benches::floor::serve(&arguments.dir, arguments.listen)
}
