//! Placeholder while the client grows.
#![allow(dead_code)]
mod confirm; mod encoding; mod escape; mod exit; mod input; mod output; mod position; mod progress; mod quantity; mod template;
fn main() {}
