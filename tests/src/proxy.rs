//! A TCP proxy that mistreats what it carries: cuts, swallows, delays, throttles, breaks, and closes in the middle of frames.
//!
//! It knows bytes and connections, not the protocol, and it never changes a byte: TCP does not, and checksums are tested
//! elsewhere. Each proxy runs on a thread of its own.

mod pump;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use self::pump::Pump;
use crate::random::Random;

/// What happens to the bytes of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Take everything, deliver nothing. Who sends notices only that no answer comes.
    pub swallow: bool,
    /// Everything arrives this much later, in order.
    pub delay: Duration,
    pub bytes_per_second: Option<u64>,
    /// One chunk in so many ends its connection with a reset, and is lost with it; never, for zero.
    pub break_one_in: u64,
    /// One chunk in so many is delivered in part and ends its connection: a frame stops in its middle.
    pub cut_short_one_in: u64,
}

/// What a proxy does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// No connections: those there are end with a reset, and new ones at once.
    pub cut: bool,
    /// From whoever connects to the target.
    pub to_target: Way,
    /// From the target back.
    pub from_target: Way,
}

impl Rules {
    /// Whether a connection may have lost bytes and yet be open.
    fn loses_bytes(&self) -> bool {
        self.to_target.swallow || self.from_target.swallow
    }

    /// The same for both directions.
    pub fn both(way: &Way) -> Self {
        Self { cut: false, to_target: way.clone(), from_target: way.clone() }
    }
}

/// What the connections of a proxy look at.
#[derive(Clone, Debug, Default)]
struct Orders {
    rules: Rules,
    /// Connections that began under a lower number are to end.
    generation: u64,
}

/// A proxy in front of one address; gone when dropped, with all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of the loopback and carries bytes to `target`. `seed` decides what breaks when.
    pub fn start(target: SocketAddr, seed: u64) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let bind = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = runtime.block_on(bind).context("bind a proxy")?;
        let address = listener.local_addr()?;
        let (orders, followed) = watch::channel(Orders::default());
        let carry = carry(listener, target, followed, Random::new(seed));
        let thread = thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || runtime.block_on(carry))?;
        Ok(Self { address, orders, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn rules(&self) -> Rules {
        self.orders.borrow().rules.clone()
    }

    /// From now on, these rules; for connections that exist, too, except those that may have lost bytes: they end.
    pub fn set(&self, rules: Rules) {
        self.orders.send_modify(|orders| {
            if orders.rules.loses_bytes() && !rules.loses_bytes() {
                // A stream with bytes missing from its middle is nothing that a network makes.
                orders.generation += 1;
            }
            orders.rules = rules;
        });
    }

    /// Changes some of the rules.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        let mut rules = self.rules();
        change(&mut rules);
        self.set(rules);
    }

    /// Ends every connection there is with a reset. New ones are welcome.
    pub fn reset_connections(&self) {
        self.orders.send_modify(|orders| orders.generation += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Ends the thread: nobody gives orders any more.
        let (gone, _) = watch::channel(Orders::default());
        drop(std::mem::replace(&mut self.orders, gone));
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Accepts until nobody gives orders any more.
async fn carry(
    listener: TcpListener,
    target: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    mut random: Random,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = orders.changed() => if changed.is_err() { return } else { continue },
            // So that the set does not grow.
            Some(_ended) = connections.join_next() => continue,
        };
        // Out of descriptors, or the caller is gone already.
        let Ok((client, _)) = accepted else { continue };
        let (orders, random) = (orders.clone(), random.fork());
        connections.spawn(async move {
            let (client, server) = (Arc::new(client), TcpStream::connect(target).await);
            let Ok(server) = server.map(Arc::new) else {
                return client.set_zero_linger().unwrap_or(());
            };
            let ended = serve(&client, &server, orders, random).await;
            if ended.is_err_and(|error| error.kind() != io::ErrorKind::UnexpectedEof) {
                // With a reset and without what is still to be sent, on both sides.
                client.set_zero_linger().and(server.set_zero_linger()).unwrap_or(());
            }
        });
    }
}

/// Carries in both directions until both have ended in order. An error ends the connection at once.
async fn serve(
    client: &Arc<TcpStream>,
    server: &Arc<TcpStream>,
    mut orders: watch::Receiver<Orders>,
    mut random: Random,
) -> io::Result<()> {
    let generation = orders.borrow().generation;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let there = Pump {
        from: client.clone(),
        to: server.clone(),
        orders: orders.clone(),
        generation,
        way: |rules| &rules.to_target,
        random: random.fork(),
    };
    let back = Pump {
        from: server.clone(),
        to: client.clone(),
        orders: orders.clone(),
        generation,
        way: |rules| &rules.from_target,
        random: random.fork(),
    };
    let ended = orders.wait_for(|orders| orders.rules.cut || orders.generation != generation);
    tokio::select! {
        both = async { tokio::try_join!(there.run(), back.run()) } => both.map(|_| ()),
        _ended = ended => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

#[cfg(test)]
mod tests;
