//! Brokers as the controller hears of them: sessions, connections, shutting down.

use bytes::Bytes;
use tidemark_controller::{
    BrokerRun, Command, ControllerEvent, QuorumEvent, quorum::testing::Mode,
};
use tidemark_protocol::{
    DirectoryId, ErrorCode,
    messages::{HeartbeatResponse, VoterId, WantedState},
};

use crate::rig::{Rig, TIMEOUT_MS, registration};

const FENCED: HeartbeatResponse = HeartbeatResponse { fenced: true, may_shut_down: false };
const NOTHING: HeartbeatResponse = HeartbeatResponse { fenced: false, may_shut_down: false };

#[test]
fn a_broker_is_unfenced_when_it_wants_to_and_has_followed_its_registration() {
    let mut rig = Rig::new();
    let epoch = rig.register(1, registration(1, 1)).unwrap();
    assert_eq!(rig.heartbeat_at(1, WantedState::Active, epoch), Ok(FENCED), "an entry short");
    assert_eq!(rig.heartbeat(1, WantedState::Fenced), Ok(FENCED));
    assert_eq!(rig.heartbeat_at(1, WantedState::Active, epoch + 1), Ok(NOTHING));
    assert_eq!(rig.heartbeat(1, WantedState::Fenced), Ok(FENCED), "its disk has failed");
    assert!(rig.is_fenced(1));
}

#[test]
fn a_heartbeat_of_another_run_or_of_nobody_is_refused() {
    let mut rig = Rig::with_brokers(1);
    rig.epochs.insert(1, 999);
    assert_eq!(
        rig.heartbeat(1, WantedState::Active).unwrap_err().code,
        ErrorCode::StaleBrokerEpoch
    );
    rig.epochs.insert(9, 0);
    assert_eq!(rig.heartbeat(9, WantedState::Active).unwrap_err().code, ErrorCode::UnknownBroker);
    rig.control.set_other_leader(Some(7));
    rig.tick();
    assert_eq!(rig.heartbeat(1, WantedState::Active).unwrap_err().code, ErrorCode::NotController);
}

#[test]
fn a_silent_broker_is_fenced_and_one_that_is_heard_is_not() {
    let mut rig = Rig::with_brokers(3);
    rig.create("orders", 3, 3);
    rig.pass(TIMEOUT_MS - 100, &[1, 3]);
    assert!(!rig.is_fenced(2));
    rig.pass(200, &[1, 3]);
    assert!(rig.is_fenced(2) && !rig.is_fenced(1) && !rig.is_fenced(3));
    for id in rig.ids("orders") {
        assert!(!rig.partition(id).isr.contains(&2) && rig.partition(id).leader.is_some());
    }
    assert_eq!(rig.heartbeat(2, WantedState::Active), Ok(NOTHING), "it is back at once");
}

#[test]
fn brokers_are_fenced_one_decision_each() {
    let mut rig = Rig::with_brokers(3);
    rig.create("orders", 3, 3);
    let before = rig.machine.image().metadata_index();
    rig.now_ms += TIMEOUT_MS / 2 - 1;
    rig.heartbeat(1, WantedState::Active).unwrap();
    rig.pass(TIMEOUT_MS / 2 + 100, &[1]);
    assert!(rig.is_fenced(2) && rig.is_fenced(3));
    assert_eq!(rig.machine.image().metadata_index(), before + 2);
    for id in rig.ids("orders") {
        assert_eq!((rig.partition(id).leader, &*rig.partition(id).isr), (Some(1), &[1][..]));
    }
}

#[test]
fn a_closed_connection_fences_at_once_and_only_if_it_is_the_last_one_heard() {
    let mut rig = Rig::with_brokers(2);
    rig.create("orders", 1, 2);
    let index = rig.machine.image().metadata_index();
    rig.send_heartbeat(1, WantedState::Active, index, 77);
    rig.event(ControllerEvent::ConnectionClosed { connection: 1 });
    rig.flush();
    assert!(!rig.is_fenced(1), "it is heard over another");
    rig.event(ControllerEvent::ConnectionClosed { connection: 77 });
    assert!(rig.machine.wants_flush());
    rig.flush();
    assert!(rig.is_fenced(1) && !rig.is_fenced(2), "no time has passed");
    assert_eq!(rig.partition(rig.ids("orders")[0]).leader, Some(2));
    rig.event(ControllerEvent::ConnectionClosed { connection: 77 });
    assert!(!rig.machine.wants_flush());
}

#[test]
fn the_connection_of_an_earlier_run_says_nothing_about_the_next() {
    let mut rig = Rig::with_brokers(1);
    rig.register(1, registration(1, 99)).unwrap();
    let index = rig.machine.image().metadata_index();
    rig.send_heartbeat(1, WantedState::Active, index, 5);
    rig.flush();
    rig.event(ControllerEvent::ConnectionClosed { connection: 1 });
    rig.flush();
    assert!(!rig.is_fenced(1));
}

#[test]
fn heartbeats_that_waited_for_the_controller_count_and_so_does_nobodys_silence_meanwhile() {
    let mut rig = Rig::with_brokers(2);
    rig.now_ms += 10 * TIMEOUT_MS;
    let index = rig.machine.image().metadata_index();
    rig.send_heartbeat(1, WantedState::Active, index, 1);
    rig.tick();
    assert!(!rig.is_fenced(1), "it had been sent");
    assert!(!rig.is_fenced(2), "this node could not listen");
    rig.pass(TIMEOUT_MS + 100, &[1]);
    assert!(rig.is_fenced(2) && !rig.is_fenced(1));
}

#[test]
fn a_new_controller_gives_everybody_a_session() {
    let mut rig = Rig::with_brokers(2);
    rig.control.set_other_leader(Some(7));
    rig.pass(10 * TIMEOUT_MS, &[]);
    assert!(!rig.is_fenced(1), "not its business");
    rig.control.set_other_leader(None);
    rig.tick();
    rig.pass(TIMEOUT_MS - 100, &[]);
    assert!(!rig.is_fenced(1) && !rig.is_fenced(2));
    rig.pass(200, &[2]);
    assert!(rig.is_fenced(1));
}

#[test]
fn whoever_went_down_with_the_last_controller_gets_no_session() {
    let mut rig = Rig::with_brokers(3);
    rig.create("orders", 3, 3);
    rig.control.set_other_leader(Some(2));
    rig.tick();
    for node in [2, 3] {
        rig.event(ControllerEvent::Quorum(QuorumEvent::PeerLost { node }));
    }
    rig.control.set_other_leader(None);
    rig.tick();
    assert!(!rig.is_fenced(2), "it may yet be heard");
    let voter = VoterId { node: 3, directory: DirectoryId([3; 16]) };
    let message = Bytes::new();
    rig.event(ControllerEvent::Quorum(QuorumEvent::Received { from: voter, message }));
    rig.pass(150, &[1]);
    assert!(rig.is_fenced(2), "long before its session is over");
    assert!(!rig.is_fenced(3), "its node is alive");
    rig.pass(TIMEOUT_MS, &[1]);
    assert!(rig.is_fenced(3), "and yet it is silent");
}

#[test]
fn a_peer_that_is_lost_to_the_quorum_is_no_broker_that_is_silent() {
    let mut rig = Rig::with_brokers(2);
    rig.event(ControllerEvent::Quorum(QuorumEvent::PeerLost { node: 2 }));
    rig.pass(200, &[1]);
    assert!(!rig.is_fenced(2), "its heartbeats come over a connection that stands");
}

#[test]
fn a_fence_that_could_not_be_decided_is_tried_again() {
    let mut rig = Rig::with_brokers(2);
    rig.control.set_mode(Mode::Full);
    rig.event(ControllerEvent::ConnectionClosed { connection: 1 });
    rig.flush();
    assert!(!rig.is_fenced(1));
    rig.control.set_mode(Mode::Commits);
    rig.tick();
    assert!(rig.is_fenced(1));
}

#[test]
fn another_directory_must_wait_until_nothing_is_heard_of_the_first() {
    let mut rig = Rig::with_brokers(1);
    let mut other = registration(1, 99);
    other.directory = DirectoryId([99; 16]);
    let failure = rig.register(1, other.clone()).unwrap_err();
    assert_eq!(failure.code, ErrorCode::DuplicateBroker);
    let same = registration(1, 98);
    rig.register(1, same).expect("a directory has one process");
    rig.heartbeat(1, WantedState::Active).unwrap();
    assert!(rig.register(1, other.clone()).is_err());
    rig.event(ControllerEvent::ConnectionClosed { connection: 1 });
    rig.register(1, other).unwrap();
}

#[test]
fn what_heartbeats_are_for_cannot_be_asked_for() {
    let mut rig = Rig::with_brokers(1);
    let run = BrokerRun { broker_id: 1, broker_epoch: rig.epochs[&1] };
    for command in [
        Command::FenceBroker(run),
        Command::UnfenceBroker(run),
        Command::BeginControlledShutdown(run),
    ] {
        assert_eq!(rig.run(command).unwrap_err().code, ErrorCode::InvalidRequest);
    }
}

#[test]
fn a_broker_may_stop_when_it_leads_nothing_and_everybody_knows() {
    let mut rig = Rig::with_brokers(3);
    rig.create("orders", 3, 3);
    let before = rig.machine.image().metadata_index();
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(NOTHING));
    for id in rig.ids("orders") {
        assert!(!rig.partition(id).isr.contains(&1) && rig.partition(id).leader.is_some());
    }
    let decided = rig.machine.image().metadata_index();
    assert_eq!(decided, before + 1);
    rig.heartbeat(2, WantedState::Active).unwrap();
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(NOTHING), "3 does not know");
    rig.heartbeat_at(3, WantedState::Active, before).unwrap();
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(NOTHING), "3 is an entry short");
    rig.heartbeat(3, WantedState::Active).unwrap();
    let may = HeartbeatResponse { fenced: false, may_shut_down: true };
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(may));
    rig.event(ControllerEvent::ConnectionClosed { connection: 1 });
    rig.flush();
    assert!(rig.is_fenced(1));
}

#[test]
fn a_broker_that_stops_alone_or_fenced_need_not_wait() {
    let mut rig = Rig::with_brokers(1);
    rig.create("orders", 1, 1);
    let may = HeartbeatResponse { fenced: false, may_shut_down: true };
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(may));
    let mut rig = Rig::with_brokers(1);
    rig.heartbeat(1, WantedState::Fenced).unwrap();
    let may = HeartbeatResponse { fenced: true, may_shut_down: true };
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(may));
}

#[test]
fn a_new_controller_goes_on_with_a_shutdown() {
    let mut rig = Rig::with_brokers(2);
    rig.create("orders", 2, 2);
    rig.heartbeat(1, WantedState::ShutDown).unwrap();
    rig.control.set_other_leader(Some(7));
    rig.tick();
    rig.control.set_other_leader(None);
    rig.tick();
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(NOTHING), "nothing is known of 2");
    rig.heartbeat(2, WantedState::Active).unwrap();
    let may = HeartbeatResponse { fenced: false, may_shut_down: true };
    assert_eq!(rig.heartbeat(1, WantedState::ShutDown), Ok(may));
}

#[test]
fn a_heartbeat_is_answered_when_what_it_asked_for_is_so() {
    let mut rig = Rig::new();
    rig.register(1, registration(1, 1)).unwrap();
    rig.control.set_mode(Mode::Holds);
    let index = rig.machine.image().metadata_index();
    let token = rig.send_heartbeat(1, WantedState::Active, index, 1);
    rig.flush();
    assert!(rig.heartbeat_answer(token).is_none());
    rig.control.set_mode(Mode::Commits);
    rig.flush();
    assert_eq!(rig.heartbeat_answer(token), Some(Ok(NOTHING)));
    rig.control.set_mode(Mode::Holds);
    let token = rig.send_heartbeat(1, WantedState::Fenced, index, 1);
    rig.control.set_other_leader(Some(7));
    rig.tick();
    let failure = rig.heartbeat_answer(token).unwrap().unwrap_err();
    assert_eq!(failure.code, ErrorCode::NotController);
}
