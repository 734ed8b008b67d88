//! The proxy in front of a server that echoes.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Instant,
};

use super::*;

/// For what has to happen.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not happen.
const A_WHILE: Duration = Duration::from_millis(100);

/// Echoes on every connection until the test ends.
fn echo() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut output = stream.try_clone().unwrap();
                io::copy(&mut &stream, &mut output).ok();
                output.shutdown(std::net::Shutdown::Write).ok();
            });
        }
    });
    address
}

fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[test]
fn without_rules_everything_arrives_and_the_end_does_too() {
    let proxy = Proxy::start(echo(), 1).unwrap();
    let mut stream = connect(&proxy);
    let sent: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let reading = {
        let mut stream = stream.try_clone().unwrap();
        thread::spawn(move || {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        })
    };
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(reading.join().unwrap() == sent);
}

#[test]
fn a_cut_resets_what_is_there_and_what_comes() {
    let proxy = Proxy::start(echo(), 1).unwrap();
    let mut stream = connect(&proxy);
    assert_eq!(ask(&mut stream, b"hello").unwrap(), b"hello");
    proxy.change(|rules| rules.cut = true);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(ask(&mut connect(&proxy), b"hello").is_err());
    proxy.set(Rules::default());
    assert_eq!(ask(&mut connect(&proxy), b"hello").unwrap(), b"hello");
}

#[test]
fn swallowed_bytes_are_lost_without_a_word_and_in_one_direction_only() {
    let proxy = Proxy::start(echo(), 1).unwrap();
    let mut stream = connect(&proxy);
    proxy.change(|rules| rules.from_target.swallow = true);
    stream.write_all(b"lost").unwrap();
    stream.set_read_timeout(Some(A_WHILE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    proxy.change(|rules| rules.from_target.swallow = false);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let ended = stream.read(&mut [0]).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "no stream with a hole");
    assert_eq!(ask(&mut connect(&proxy), b"seen").unwrap(), b"seen");
}

#[test]
fn connections_are_reset_on_demand_and_new_ones_work() {
    let proxy = Proxy::start(echo(), 1).unwrap();
    let mut stream = connect(&proxy);
    assert_eq!(ask(&mut stream, b"hello").unwrap(), b"hello");
    proxy.reset_connections();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(ask(&mut connect(&proxy), b"hello").unwrap(), b"hello");
}

#[test]
fn what_arrives_of_a_connection_that_is_cut_short_has_no_holes() {
    let proxy = Proxy::start(echo(), 1).unwrap();
    let way = Way { delay: Duration::from_millis(3), cut_short_one_in: 5, ..Way::default() };
    proxy.set(Rules { from_target: way, ..Rules::default() });
    let sent: Vec<u8> = (0..5_000_u32).map(|number| (number % 251).to_le_bytes()[0]).collect();
    let mut cut_short = 0;
    for _ in 0..20 {
        let mut stream = connect(&proxy);
        stream.set_nodelay(true).unwrap();
        let writing = {
            let (mut stream, sent) = (stream.try_clone().unwrap(), sent.clone());
            thread::spawn(move || {
                // One by one, so that they come in many chunks. The connection may end at any of them.
                let mut chunks = sent.chunks(10);
                while chunks.next().is_some_and(|chunk| stream.write_all(chunk).is_ok()) {
                    thread::yield_now();
                }
                stream.shutdown(std::net::Shutdown::Write).ok();
            })
        };
        let mut arrived = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|count| count == 1) {
            arrived.push(byte[0]);
        }
        writing.join().unwrap();
        assert!(sent.starts_with(&arrived), "{arrived:?}");
        cut_short += usize::from(arrived.len() < sent.len());
    }
    assert!(cut_short > 0, "no connection was cut short");
}

#[test]
fn bytes_are_held_back_and_throttled() {
    let proxy = Proxy::start(echo(), 1).unwrap();
    let mut stream = connect(&proxy);
    let delay = Duration::from_millis(40);
    proxy.set(Rules::both(&Way { delay, ..Way::default() }));
    let began = Instant::now();
    assert_eq!(ask(&mut stream, b"slow").unwrap(), b"slow");
    assert!(began.elapsed() >= delay * 2, "{:?}", began.elapsed());
    proxy.set(Rules::default());
    proxy.change(|rules| rules.to_target.bytes_per_second = Some(100_000));
    let began = Instant::now();
    ask(&mut stream, &[7; 10_000]).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
}

#[test]
fn connections_break_at_random_and_in_the_middle_of_what_is_sent() {
    let proxy = Proxy::start(echo(), 1).unwrap();
    proxy.change(|rules| rules.to_target.break_one_in = 3);
    let mut stream = connect(&proxy);
    let answered = (0..100).take_while(|_| ask(&mut stream, b"hello").is_ok()).count();
    assert!(answered < 100, "never broken");
    proxy.set(Rules::default());
    proxy.change(|rules| rules.from_target.cut_short_one_in = 1);
    let mut stream = connect(&proxy);
    stream.write_all(b"0123456789").unwrap();
    let mut all = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|count| count == 1) {
        all.push(byte[0]);
    }
    assert!(!all.is_empty() && all.len() < 10, "{all:?}");
    assert!(b"0123456789".starts_with(&all));
}
