//! A client in another language, written from `docs/protocol.md` alone, works with a broker.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use tidemark_tests::process::BrokerConfig;

#[test]
fn a_client_written_from_the_document_alone_creates_produces_and_consumes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = BrokerConfig::new(dir.path())?.start()?;
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/scenario.py");
    // -B: no compiled files next to the source.
    let output = Command::new("python3")
        .arg("-B")
        .arg(scenario)
        .arg(broker.address())
        .output()
        .context("this suite needs python3, 3.11 or later")?;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success() && said.trim() == "ok",
        "{}\n{said}{complained}\nbroker log:\n{}",
        output.status,
        broker.log()
    );
    Ok(())
}
