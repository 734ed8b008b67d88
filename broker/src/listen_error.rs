//! Why a port could not be opened, in words that say what to do next. The same for every port.

use std::io;

use crate::config::settings::flag_name;

/// A setting names an address on which this process cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (setting `{setting}`): {}", advice(.setting, .cause))]
pub struct ListenError {
    pub setting: &'static str,
    pub address: String,
    // Not called `source`, which would print it twice: the message says it already.
    pub cause: io::Error,
}

impl ListenError {
    /// `setting`: the name of the setting that holds the address.
    pub fn new(setting: &'static str, address: &str, cause: io::Error) -> Self {
        Self { setting, address: address.to_owned(), cause }
    }
}

fn advice(setting: &str, error: &io::Error) -> String {
    let flag = flag_name(setting);
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there, perhaps another tidemarkd; stop it, or choose another port with \
             --{flag} HOST:PORT"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "this machine has no such address; choose one that it has with --{flag} HOST:PORT"
            )
        }
        io::ErrorKind::PermissionDenied => format!(
            "permission denied; ports below 1024 need a privilege, choose another with --{flag} HOST:PORT"
        ),
        _ => format!("{error}; check --{flag} HOST:PORT"),
    }
}
