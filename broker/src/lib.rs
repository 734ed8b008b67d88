//! `tidemarkd`: wires the machines to sockets, disks, clocks and threads.
//!
//! The outer shell, in reading order: [`config`], [`logging`], [`metrics`], [`health`], [`http`], [`banner`];
//! what everything uses: [`tasks`], [`clock`]; what watches the disk: [`disk_watch`]. [`steered`] is for a simulator.

pub mod banner;
pub mod clock;
pub mod config;
pub mod disk_watch;
pub mod health;
pub mod http;
pub mod listen_error;
pub mod logging;
pub mod metrics;
pub mod tasks;

mod assignments;
mod bootstrap;
mod broker;
mod compactor;
mod connection;
mod control;
mod controller;
mod coordinators;
mod disk;
mod flusher;
mod gauges;
mod janitor;
mod lag;
mod left_behind;
mod listener;
mod log_dirs;
mod member;
mod metadata_feed;
mod native;
mod partitions;
mod peer;
mod peers;
mod producer_ids;
mod producers;
mod reads;
mod relinquish;
mod replicas;
mod roles;
pub mod server;
mod service;
mod shard;
pub mod steered;
