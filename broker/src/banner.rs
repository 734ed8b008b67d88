//! The first thing a person sees: where the broker listens, where the data is, and what to type next.

use std::{
    env, fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// Where the command line looks for a broker by itself.
const CLIENT_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9092);

/// What the banner says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banner {
    pub version: &'static str,
    pub data_address: Option<SocketAddr>,
    pub http_address: Option<SocketAddr>,
    /// Absolute, so that it can be copied into another terminal.
    pub data_dir: PathBuf,
    /// How to call the command line in this installation.
    pub client: String,
    /// Options that the command line needs to reach this broker: none at the default address.
    pub client_options: String,
}

impl fmt::Display for Banner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, client, client_options, .. } = self;
        writeln!(out, "tidemarkd {version} is ready")?;
        writeln!(out)?;
        if let Some(address) = self.data_address {
            writeln!(out, "  data and administration   {address}")?;
        }
        if let Some(address) = self.http_address {
            writeln!(out, "  metrics and health        http://{address}/")?;
        }
        writeln!(out, "  stored in                 {}", self.data_dir.display())?;
        writeln!(out)?;
        writeln!(out, "Try, in another terminal:")?;
        writeln!(out)?;
        writeln!(out, "  {client}{client_options} topic create hello")?;
        writeln!(out, "  echo 'hello, world' | {client}{client_options} produce hello")?;
        writeln!(out, "  {client}{client_options} consume hello --exit-at-end")?;
        writeln!(out)?;
        writeln!(out, "Ctrl-C stops it.")
    }
}

/// How to call the command line: the binary beside this one, else cargo's alias when cargo started us, else
/// whatever `tidemark` is on the path.
pub fn client_command() -> String {
    let sibling = env::current_exe().ok().map(|own| own.with_file_name("tidemark"));
    let started_by_cargo = env::var_os("CARGO_MANIFEST_DIR").is_some();
    match sibling {
        Some(sibling) if sibling.is_file() => {
            short_path(&sibling, env::current_dir().ok().as_deref())
        }
        _ if started_by_cargo => "cargo tidemark".to_owned(),
        _ => "tidemark".to_owned(),
    }
}

/// What the command line must be told to find a broker that listens on `address`, with a space in front.
pub fn client_options(address: SocketAddr) -> String {
    // Listening everywhere includes this machine, which is where the banner is read.
    let local = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let reached = SocketAddr::new(local, address.port());
    if reached == CLIENT_DEFAULT { String::new() } else { format!(" --brokers {reached}") }
}

/// The path as one would type it from `dir`. From the root that is the path itself: without its slash it is as long, and
/// wrong everywhere else.
fn short_path(path: &Path, dir: Option<&Path>) -> String {
    let dir = dir.filter(|dir| dir.parent().is_some());
    match dir.and_then(|dir| path.strip_prefix(dir).ok()) {
        Some(relative) if relative.components().count() == 1 => format!("./{}", relative.display()),
        Some(relative) => relative.display().to_string(),
        None => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_can_be_copied_from() {
        let banner = Banner {
            version: "0.1.0",
            data_address: Some("127.0.0.1:9092".parse().unwrap()),
            http_address: Some("127.0.0.1:9644".parse().unwrap()),
            data_dir: PathBuf::from("/srv/tidemark-data"),
            client: short_path(Path::new("/srv/target/release/tidemark"), Some(Path::new("/srv"))),
            client_options: String::new(),
        };
        let text = banner.to_string();
        for line in [
            "  data and administration   127.0.0.1:9092",
            "  metrics and health        http://127.0.0.1:9644/",
            "  stored in                 /srv/tidemark-data",
            "  target/release/tidemark topic create hello",
        ] {
            assert!(text.lines().any(|known| known == line), "no `{line}` in:\n{text}");
        }
    }

    #[test]
    fn the_command_line_is_told_where_the_broker_is_only_when_it_would_not_find_it() {
        for (address, options) in [
            ("127.0.0.1:9092", ""),
            ("0.0.0.0:9092", ""),
            ("0.0.0.0:7000", " --brokers 127.0.0.1:7000"),
            ("[::]:9092", " --brokers [::1]:9092"),
            ("10.0.0.7:9092", " --brokers 10.0.0.7:9092"),
        ] {
            assert_eq!(client_options(address.parse().unwrap()), options);
        }
    }

    #[test]
    fn a_binary_in_the_working_directory_is_called_with_its_dot() {
        assert_eq!(short_path(Path::new("/bin/tidemark"), Some(Path::new("/bin"))), "./tidemark");
        assert_eq!(
            short_path(Path::new("/bin/tidemark"), Some(Path::new("/srv"))),
            "/bin/tidemark"
        );
    }

    #[test]
    fn from_the_root_a_path_keeps_its_slash() {
        let installed = Path::new("/usr/local/bin/tidemark");
        assert_eq!(short_path(installed, Some(Path::new("/"))), "/usr/local/bin/tidemark");
    }
}
