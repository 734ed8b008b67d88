//! Commands: groups, order, failures, and a leadership that comes and goes.

use tidemark_controller::{
    Command, ControllerEffect, ControllerEvent, DeleteTopic, Image, Quorum, QuorumEvent,
    VoterChange, leader_hint, machine::WAITING_MAX, quorum::testing::Mode,
};
use tidemark_protocol::{DirectoryId, ErrorCode, messages::VoterId};

use crate::rig::{NODE, Rig, create, registration};

#[test]
fn commands_before_a_flush_share_it_and_are_answered_in_order_after_it() {
    let mut rig = Rig::with_brokers(1);
    let flushes = rig.control.commits();
    let tokens: Vec<_> =
        (0..100).map(|number| rig.send(create(&format!("topic-{number}"), 1, 1))).collect();
    let refused = rig.send(create("topic-5", 1, 1));
    assert!(rig.machine.wants_flush());
    assert!(rig.effects.is_empty(), "nothing is said before it is committed");
    assert_eq!(rig.machine.image().topic_count(), 0, "nothing is shown before it is committed");
    rig.flush();
    assert!(!rig.machine.wants_flush());
    assert_eq!(rig.control.commits(), flushes + 1);
    assert!(matches!(rig.effects[0], ControllerEffect::Published { .. }), "shown, then told");
    let mut last = 0;
    for token in tokens {
        let index = rig.answer(token).unwrap().unwrap().metadata_index;
        assert!(index > last, "in the order they came");
        last = index;
    }
    let failure = rig.answer(refused).unwrap().unwrap_err();
    assert_eq!(failure.code, ErrorCode::TopicExists, "it rests on what was not committed yet");
    assert_eq!(rig.followed, **rig.machine.image());
}

#[test]
fn what_needs_no_entry_waits_for_what_it_rests_on_and_for_nothing_else() {
    let mut rig = Rig::with_brokers(1);
    let delete = |name: &str| Command::DeleteTopic(DeleteTopic { name: name.to_owned(), id: None });
    let unknown = rig.send(delete("orders"));
    assert!(rig.answer(unknown).unwrap().is_err(), "at once");
    rig.control.set_mode(Mode::Holds);
    let created = rig.send(create("orders", 1, 1));
    let again = rig.send(create("orders", 1, 1));
    rig.flush();
    assert!(rig.answer(created).is_none() && rig.answer(again).is_none());
    rig.control.set_mode(Mode::Commits);
    rig.flush();
    assert!(rig.answer(created).unwrap().is_ok() && rig.answer(again).unwrap().is_err());
}

#[test]
fn a_node_decides_only_when_it_has_applied_an_entry_of_its_term() {
    let mut rig = Rig::passive();
    let failure = rig.run(create("orders", 1, 1)).unwrap_err();
    assert_eq!((failure.code, leader_hint(&failure)), (ErrorCode::NotController, None));
    rig.control.set_mode(Mode::Holds);
    rig.tick();
    let role = rig.effects.pop().unwrap();
    let leads = ControllerEffect::Role { term: 1, leader: Some(NODE), is_active: false };
    assert_eq!(role, leads);
    assert!(!rig.machine.is_active());
    let failure = rig.run(create("orders", 1, 1)).unwrap_err();
    assert_eq!(failure.code, ErrorCode::NotController, "it leads, and may not know everything");
    rig.control.set_mode(Mode::Commits);
    rig.flush();
    let is_active = ControllerEffect::Role { term: 1, leader: Some(NODE), is_active: true };
    assert_eq!(rig.effects.pop().unwrap(), is_active);
    rig.register(1, registration(1, 1)).unwrap();
}

#[test]
fn whoever_loses_the_term_answers_everybody_and_forgets_what_was_not_committed() {
    let mut rig = Rig::with_brokers(1);
    rig.create("kept", 1, 1);
    rig.control.set_mode(Mode::Holds);
    let lost = rig.send(create("lost", 1, 1));
    let refused = rig.send(create("lost", 1, 1));
    rig.flush();
    rig.control.set_other_leader(Some(7));
    rig.control.set_mode(Mode::Commits);
    rig.tick();
    for token in [lost, refused] {
        let failure = rig.answer(token).unwrap().unwrap_err();
        assert_eq!((failure.code, leader_hint(&failure)), (ErrorCode::NotController, Some(7)));
    }
    let failure = rig.run(create("lost", 1, 1)).unwrap_err();
    assert_eq!(leader_hint(&failure), Some(7));
    assert_eq!(rig.machine.leader(), Some(7));

    rig.control.set_other_leader(None);
    rig.tick();
    assert!(rig.machine.is_active());
    assert_eq!(rig.machine.image().topic_count(), 1);
    rig.create("lost", 1, 1);
    assert_eq!(rig.followed, **rig.machine.image());
}

#[test]
fn a_full_log_refuses_and_takes_more_when_there_is_space() {
    let mut rig = Rig::with_brokers(1);
    rig.control.set_mode(Mode::Full);
    assert_eq!(rig.run(create("orders", 1, 1)).unwrap_err().code, ErrorCode::DiskFull);
    rig.control.set_mode(Mode::Commits);
    rig.create("orders", 1, 1);
}

#[test]
fn when_the_log_fails_nothing_is_decided_any_more_and_the_image_can_be_read() {
    let mut rig = Rig::with_brokers(1);
    rig.create("kept", 1, 1);
    rig.control.set_mode(Mode::Holds);
    let waiting = rig.send(create("lost", 1, 1));
    rig.control.set_mode(Mode::Failed);
    rig.tick();
    assert_eq!(rig.answer(waiting).unwrap().unwrap_err().code, ErrorCode::StorageFailed);
    let has_said = |effect: &ControllerEffect| matches!(effect, ControllerEffect::Failed { .. });
    assert_eq!(rig.effects.iter().filter(|effect| has_said(effect)).count(), 1);
    rig.control.set_mode(Mode::Commits);
    rig.tick();
    assert_eq!(rig.run(create("more", 1, 1)).unwrap_err().code, ErrorCode::StorageFailed);
    assert!(rig.machine.image().topic("kept").is_some());
}

#[test]
fn entries_of_the_quorum_itself_count() {
    let mut rig = Rig::with_brokers(1);
    let voter = VoterId { node: 2, directory: DirectoryId([2; 16]) };
    rig.event(ControllerEvent::Quorum(QuorumEvent::ChangeVoters(VoterChange::Add(voter))));
    let epoch = rig.register(2, registration(2, 1)).unwrap();
    assert_eq!(rig.machine.image().broker(2).unwrap().epoch, epoch, "the index of its entry");
    rig.create("orders", 1, 1);
    assert_eq!(rig.followed, **rig.machine.image());
}

#[test]
fn snapshots_are_of_what_is_committed() {
    let mut rig = Rig::with_brokers(1);
    rig.control.snapshot_every(10);
    for number in 0..25 {
        rig.create(&format!("topic-{number}"), 1, 1);
    }
    let snapshot = rig.machine.quorum().latest_snapshot().unwrap();
    let image = Image::from_snapshot(&snapshot.bytes).unwrap();
    assert_eq!(image.metadata_index(), snapshot.index);
    assert!(rig.machine.image().metadata_index() - snapshot.index < 10);
}

#[test]
fn those_who_wait_are_bounded() {
    let mut rig = Rig::with_brokers(1);
    rig.send(create("orders", 1, 1));
    let waiting: Vec<_> = (1..WAITING_MAX).map(|_| rig.send(create("orders", 1, 1))).collect();
    let refused = rig.send(create("other", 1, 1));
    rig.flush();
    assert_eq!(rig.answer(refused).unwrap().unwrap_err().code, ErrorCode::Overloaded);
    let answered = rig.effects.iter().filter(|effect| {
        matches!(effect, ControllerEffect::Answer { token, .. } if waiting.contains(token))
    });
    assert_eq!(answered.count(), waiting.len());
}
