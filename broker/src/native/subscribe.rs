//! Subscribe, natively: the subscriptions of one connection, their credit and their pushes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use tidemark_protocol::{
    ErrorCode, Failure,
    frame::Frame,
    message::Api,
    messages::{PushHeader, SubscribeRequest, SubscribeResponse},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    NativeDoor, invalid_header,
    reply::{Replier, encode_push},
};
use crate::{
    broker::Broker,
    connection::{Begun, Pending, Reply},
    service::subscribe::{self, Credit, Gone, Pushes},
    tasks::Shutdown,
};

/// Most subscriptions of one connection.
const SUBSCRIPTIONS_MAX: usize = 256;

/// The subscriptions of one connection; they end with it.
pub(super) struct Subscriptions {
    active: HashMap<u32, Active>,
    pushes: mpsc::Sender<Reply>,
    /// Stops all of them.
    stop: Shutdown,
}

struct Active {
    credit: Arc<Credit>,
    cancel: Shutdown,
    /// Set when its last push has taken its place among what is sent.
    has_ended: Arc<AtomicBool>,
}

impl Subscriptions {
    pub(super) fn new(broker: &Broker, pushes: mpsc::Sender<Reply>) -> Self {
        let stop = broker.tasks.shutdown().child();
        Self { active: HashMap::new(), pushes, stop }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.active.values().all(Active::has_ended)
    }

    /// Credit for a subscription that has ended is of no use to anybody.
    pub(super) fn add_credit(&self, correlation: u32, bytes: u32) {
        if let Some(active) = self.active.get(&correlation) {
            active.credit.add(bytes);
        }
    }

    /// Its correlation is free once it has said its last word.
    pub(super) fn cancel(&self, correlation: u32) {
        if let Some(active) = self.active.get(&correlation) {
            active.cancel.start();
        }
    }

    fn forget_ended(&mut self) {
        self.active.retain(|_, active| !active.has_ended());
    }
}

impl Active {
    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        self.stop.start();
    }
}

pub(super) fn begin(door: &mut NativeDoor, frame: &Frame, received_at: Instant) -> Begun {
    let replier = Replier::new(&door.broker, Api::Subscribe, frame.correlation, received_at);
    let request: SubscribeRequest = match frame.message() {
        Ok(request) => request,
        Err(error) => return replier.refuse(&invalid_header(&error)),
    };
    let correlation = frame.correlation;
    door.subscriptions.forget_ended();
    if let Err(failure) = may_begin(&door.subscriptions, correlation) {
        return replier.refuse(&failure);
    }
    let credit = Arc::new(Credit::default());
    let (partitions, subscription) =
        subscribe::subscribe(&door.broker, &request, Arc::clone(&credit));
    let response =
        replier.reply::<SubscribeRequest>(&Ok(SubscribeResponse { partitions }), Vec::new());

    let (has_ended, cancel) = (Arc::new(AtomicBool::new(false)), door.subscriptions.stop.child());
    let pushes = door.subscriptions.pushes.clone();
    let pushes = NativePushes { correlation, pushes, has_ended: Arc::clone(&has_ended) };
    let active = Active { credit, cancel: cancel.clone(), has_ended };
    door.subscriptions.active.insert(correlation, active);
    let (answered, has_answered) = oneshot::channel();
    door.broker.tasks.spawn("subscription", async move {
        // The first push comes after the answer, or there is no connection any more.
        if has_answered.await.is_ok() {
            subscription.run(&pushes, &cancel).await;
        }
    });
    let response = response.when_placed(move || {
        answered.send(()).ok();
    });
    Begun::Reply { held_bytes: frame.wire_bytes(), pending: Pending::Ready(response) }
}

fn may_begin(subscriptions: &Subscriptions, correlation: u32) -> Result<(), Failure> {
    if subscriptions.active.contains_key(&correlation) {
        let message = format!("correlation {correlation} names a subscription that has not ended");
        return Err(Failure::new(ErrorCode::InvalidRequest, message));
    }
    if subscriptions.active.len() >= SUBSCRIPTIONS_MAX {
        let message = format!("a connection has at most {SUBSCRIPTIONS_MAX} subscriptions");
        return Err(Failure::new(ErrorCode::Overloaded, message));
    }
    Ok(())
}

struct NativePushes {
    correlation: u32,
    pushes: mpsc::Sender<Reply>,
    has_ended: Arc<AtomicBool>,
}

impl Pushes for NativePushes {
    async fn push(&self, header: PushHeader, payload: Bytes) -> Result<(), Gone> {
        let mut push = encode_push(Api::Subscribe, self.correlation, &header, vec![payload]);
        if header.partition.is_none() {
            // The peer may use the correlation again as soon as it has seen this.
            let has_ended = Arc::clone(&self.has_ended);
            push = push.when_placed(move || has_ended.store(true, Ordering::Release));
        }
        self.pushes.send(push).await.map_err(|_closed| Gone)
    }
}
