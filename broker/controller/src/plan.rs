//! What follows from images, for whoever acts on them: what a broker has to do to get from one to the next, and
//! which replicas should move. Pure, and it decides nothing: moves are proposed as commands.

mod difference;
mod moves;
mod place;

pub use difference::{Difference, Member, Placed, difference, members};
pub use moves::{Moves, balance, drain};
pub use place::{evacuate, place};
