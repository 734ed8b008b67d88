//! Telling the program that its member waits for a place: once for each time, not with every heartbeat.

/// What the program wants to be told by.
type OnWaiting = Box<dyn FnMut(&str) + Send + Sync>;

#[derive(Default)]
pub(super) struct Waiting {
    on_waiting: Option<OnWaiting>,
    /// The program has been told of the waiting that is under way.
    has_told: bool,
}

impl Waiting {
    pub(super) fn on(on_waiting: impl FnMut(&str) + Send + Sync + 'static) -> Self {
        Self { on_waiting: Some(Box::new(on_waiting)), has_told: false }
    }

    /// `why` it waits, if it does.
    pub(super) fn tell(&mut self, why: Option<&str>) {
        let has_told = std::mem::replace(&mut self.has_told, why.is_some());
        if let Some(why) = why
            && !has_told
            && let Some(on_waiting) = &mut self.on_waiting
        {
            on_waiting(why);
        }
    }
}
