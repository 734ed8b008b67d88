//! The administrator: has commands carried out, one after the other, by whichever controller is active.

use std::collections::VecDeque;

use tidemark_controller::Command;
use tidemark_protocol::{ErrorCode, NodeId};

use super::{Answer, Caller, ClientId, Reach};
use crate::sim::{
    core::{Event, MS, Micros, SECOND},
    message::{Correlation, Request},
    network::Delivery,
    trace::Who,
};

/// How long a command is pursued.
const PATIENCE_US: Micros = 8 * SECOND;
/// Pause between two attempts.
const PAUSE_US: Micros = 60 * MS;
/// Timer: the next attempt.
const NEXT: u64 = 1;

/// The administrator's list.
#[derive(Debug)]
pub struct Admin {
    caller: Caller,
    controllers: Vec<NodeId>,
    at: usize,
    wishes: VecDeque<Command>,
    asked: Option<Correlation>,
    deadline_us: Micros,
}

impl Admin {
    pub fn new(id: ClientId, controllers: Vec<NodeId>) -> Self {
        Self {
            caller: Caller::new(id, controllers.clone()),
            controllers,
            at: 0,
            wishes: VecDeque::new(),
            asked: None,
            deadline_us: 0,
        }
    }

    /// Puts a command on the list.
    pub fn wish(&mut self, command: Command, reach: &mut Reach<'_>) {
        self.wishes.push_back(command);
        reach.core.after(0, Event::Client { client: self.caller.id, timer: NEXT });
    }

    /// Whether everything on the list was dealt with.
    pub fn is_idle(&self) -> bool {
        self.wishes.is_empty()
    }

    pub fn deliver(&mut self, delivery: Delivery, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.take_in(delivery, reach) {
            self.answered(correlation, &answer, reach);
        }
    }

    pub fn timer(&mut self, timer: u64, reach: &mut Reach<'_>) {
        for (correlation, answer) in self.caller.overdue(reach) {
            self.answered(correlation, &answer, reach);
        }
        if timer == NEXT {
            self.attempt(reach);
        }
    }

    fn attempt(&mut self, reach: &mut Reach<'_>) {
        if self.asked.is_some() {
            return;
        }
        let now_us = reach.core.now_us();
        let Some(command) = self.wishes.front() else { return };
        if self.deadline_us == 0 {
            self.deadline_us = now_us + PATIENCE_US;
        }
        let controller = self.controllers[self.at % self.controllers.len()];
        let request = Request::Command(command.clone());
        self.asked = Some(self.caller.ask(controller, request, reach));
    }

    fn answered(&mut self, correlation: Correlation, answer: &Answer, reach: &mut Reach<'_>) {
        if self.asked != Some(correlation) {
            return;
        }
        self.asked = None;
        let who = Who::Client(self.caller.id);
        reach.core.note(who, "admin", [self.wishes.len() as u64, 0], || {
            format!("{:?}: {answer:?}", self.wishes.front())
        });
        let is_elsewhere = match answer {
            Answer::Lost => true,
            Answer::Refused(failure) => matches!(
                failure.code,
                ErrorCode::NotController | ErrorCode::NotReady | ErrorCode::Timeout
            ),
            Answer::Response(_) => false,
        };
        let is_over = reach.core.now_us() >= self.deadline_us;
        if is_elsewhere && !is_over {
            self.at += 1;
        } else {
            let outcome = match answer {
                Answer::Response(_) => "admin ok",
                Answer::Refused(_) if !is_elsewhere => "admin refused",
                Answer::Refused(_) | Answer::Lost => "admin unknown",
            };
            reach.core.figures.operation(outcome);
            self.wishes.pop_front();
            self.deadline_us = 0;
        }
        if !self.wishes.is_empty() {
            let client = self.caller.id;
            reach.core.after(PAUSE_US, Event::Client { client, timer: NEXT });
        }
    }
}
