//! A real Prometheus scrapes a broker and is asked for what it saw.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidemark_client::{Client, ClientConfig, NewTopic, ProducerRecord, TransactionalConfig};
use tidemark_tests::{
    http,
    process::BrokerConfig,
    raw::{Raw, batch},
    tools::debian_program,
};

/// How long Prometheus may take to start and to have scraped; it scrapes every second.
const PATIENCE: Duration = Duration::from_mins(1);

struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Gone already is as good.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Prometheus {
    fn start(target: SocketAddr) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = dir.path().join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\n\
                 scrape_configs:\n- job_name: tidemark\n  static_configs:\n  - targets: ['{target}']\n"
            ),
        )?;
        let child = Command::new(debian_program("prometheus", "prometheus")?)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, address, _dir: dir })
    }

    /// The value of an expression that selects one series; `None` while there is none.
    fn query(&self, expression: &str) -> Option<f64> {
        let encoded =
            expression.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02X}"));
        // Refused while it starts.
        let answer = http::get(self.address, &format!("/api/v1/query?query={encoded}")).ok()?;
        let json: Value = serde_json::from_str(&answer.body).ok()?;
        json["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// Asks until the expression has the value.
    fn wait_for(&self, expression: &str, value: f64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.query(expression);
            if seen == Some(value) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{expression} is {seen:?}, not {value}");
            // Prometheus tells nobody when it has scraped.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn prometheus_reads_what_was_produced() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = BrokerConfig::new(dir.path())?.start()?;
    let mut raw = Raw::open(&broker)?;
    let partition = raw.create_topic("scraped", 1, &[])?[0];
    for _ in 0..7 {
        raw.produce(partition, &batch(&[b"one", b"two", b"three"]))??;
    }
    let prometheus = Prometheus::start(broker.http_address())?;
    prometheus.wait_for("up{job=\"tidemark\"}", 1.0)?;
    prometheus.wait_for("sum(tidemark_records_in_total{topic=\"scraped\"})", 21.0)?;
    prometheus.wait_for("sum(tidemark_batches_in_total{topic=\"scraped\"})", 7.0)?;
    prometheus
        .wait_for("sum(tidemark_request_seconds_count{api=\"produce\",stage=\"total\"})", 7.0)
        .context("latency histograms")?;
    Ok(())
}

#[test]
fn a_transaction_shows_while_it_is_open_and_once_it_has_ended() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = BrokerConfig::new(dir.path())?.start()?;
    let prometheus = Prometheus::start(broker.http_address())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::connect(ClientConfig::new(broker.address())).await?;
        client.admin().create_topic(NewTopic::new("open").partitions(1)).await?;
        let mut producer = client.transactional_producer(TransactionalConfig::new("one")).await?;
        let undecided = "sum(tidemark_undecided_records{topic=\"open\"})";
        producer.begin()?;
        for value in ["a", "b"] {
            producer.send(ProducerRecord::to("open").partition(0).value(value)).await?.await?;
        }
        prometheus.wait_for("sum(tidemark_transactions{state=\"open\"})", 1.0)?;
        prometheus.wait_for("sum(tidemark_transaction_oldest_open_seconds > bool 0)", 1.0)?;
        prometheus.wait_for(undecided, 2.0)?;
        producer.commit().await?;
        prometheus
            .wait_for("sum(tidemark_transactions_ended_total{outcome=\"committed\"})", 1.0)?;
        prometheus.wait_for("sum(tidemark_transactions{state=\"open\"})", 0.0)?;
        prometheus.wait_for(undecided, 0.0)?;
        producer.close().await;
        Ok(())
    })
}
