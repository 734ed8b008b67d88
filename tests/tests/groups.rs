//! Consumer groups on real brokers: members come, go and are killed, coordinators are killed, and what is committed stays.

#[path = "groups/commands.rs"]
mod commands;
#[path = "groups/coordinators.rs"]
mod coordinators;
#[path = "groups/members.rs"]
mod members;
#[path = "groups/refusals.rs"]
mod refusals;
#[path = "groups/rig.rs"]
mod rig;
#[path = "groups/settings.rs"]
mod settings;
