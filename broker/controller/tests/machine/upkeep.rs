//! What the active controller does without being asked.

use tidemark_controller::{
    AlterTopic, Command, ControllerEffect, ControllerEvent, SetDraining, UncleanElection,
};
use tidemark_protocol::messages::{TopicSettings, WantedState};

use crate::rig::{BALANCE_MS, Rig};

#[test]
fn leadership_goes_back_to_the_first_in_order_of_preference() {
    let mut rig = Rig::with_brokers(3);
    rig.create("orders", 6, 3);
    let ids = rig.ids("orders");
    rig.event(ControllerEvent::ConnectionClosed { connection: 1 });
    rig.flush();
    assert!(ids.iter().all(|id| rig.partition(*id).leader != Some(1)));
    rig.heartbeat(1, WantedState::Active).unwrap();
    rig.pass(BALANCE_MS + 100, &[1, 2, 3]);
    assert!(ids.iter().all(|id| rig.partition(*id).leader != Some(1)), "not in sync yet");
    for id in &ids {
        rig.catch_up(*id);
    }
    rig.pass(BALANCE_MS + 100, &[1, 2, 3]);
    for id in &ids {
        let partition = rig.partition(*id);
        assert_eq!(partition.leader, Some(partition.replicas[0]));
    }
}

#[test]
fn a_broker_is_drained_in_batches_that_go_on_over_a_failover_and_stop_on_command() {
    let mut rig = Rig::with_brokers(4);
    rig.create("orders", 160, 3);
    let holds = |rig: &Rig| {
        rig.ids("orders").iter().filter(|id| rig.partition(**id).replicas.contains(&1)).count()
    };
    let moving = |rig: &Rig| -> Vec<_> {
        let ids = rig.ids("orders").into_iter();
        ids.filter(|id| rig.partition(*id).is_reassigning()).collect()
    };
    assert_eq!(holds(&rig), 120);
    let set = |draining| Command::SetDraining(SetDraining { broker_id: 1, draining });
    rig.run(set(true)).unwrap();
    rig.pass(200, &[1, 2, 3, 4]);
    assert_eq!(moving(&rig).len(), 50, "so many at a time");
    for id in moving(&rig).into_iter().take(20) {
        rig.catch_up(id);
    }
    rig.pass(200, &[1, 2, 3, 4]);
    assert_eq!((moving(&rig).len(), holds(&rig)), (50, 100));

    rig.control.set_other_leader(Some(7));
    rig.tick();
    rig.control.set_other_leader(None);
    rig.tick();
    for _ in 0..2 {
        for id in moving(&rig) {
            rig.catch_up(id);
        }
        rig.pass(200, &[1, 2, 3, 4]);
    }
    assert_eq!((moving(&rig).len(), holds(&rig)), (0, 0));

    rig.run(set(false)).unwrap();
    rig.run(Command::SetDraining(SetDraining { broker_id: 2, draining: true })).unwrap();
    rig.pass(100, &[1, 2, 3, 4]);
    rig.run(Command::SetDraining(SetDraining { broker_id: 2, draining: false })).unwrap();
    for id in moving(&rig) {
        rig.catch_up(id);
    }
    rig.pass(200, &[1, 2, 3, 4]);
    assert_eq!((moving(&rig).len(), holds(&rig)), (0, 50), "what had begun has arrived");
}

#[test]
fn a_drain_that_cannot_go_on_waits_for_a_broker_and_writes_nothing() {
    let mut rig = Rig::with_brokers(2);
    rig.create("orders", 3, 2);
    rig.run(Command::SetDraining(SetDraining { broker_id: 1, draining: true })).unwrap();
    let index = rig.machine.image().metadata_index();
    rig.pass(500, &[1, 2]);
    assert_eq!(rig.machine.image().metadata_index(), index);
    rig.start(3);
    rig.pass(100, &[1, 2, 3]);
    assert!(rig.ids("orders").iter().all(|id| rig.partition(*id).is_reassigning()));
}

#[test]
fn an_unclean_election_is_written_down() {
    let mut rig = Rig::with_brokers(2);
    rig.create("orders", 1, 2);
    let id = rig.ids("orders")[0];
    rig.event(ControllerEvent::ConnectionClosed { connection: 2 });
    rig.flush();
    rig.event(ControllerEvent::ConnectionClosed { connection: 1 });
    rig.flush();
    rig.heartbeat(2, WantedState::Active).unwrap();
    assert_eq!(rig.partition(id).leader, None, "only 1 has everything");
    let audits = |rig: &Rig| -> Vec<UncleanElection> {
        let audit = |effect: &ControllerEffect| match effect {
            ControllerEffect::Audit(election) => Some(election.clone()),
            _ => None,
        };
        rig.effects.iter().filter_map(audit).collect()
    };
    assert_eq!(audits(&rig), []);
    rig.run(Command::AlterTopic(AlterTopic {
        name: "orders".to_owned(),
        set: TopicSettings::from([("unclean_leader_election".to_owned(), "true".to_owned())]),
        unset: Vec::new(),
        validate_only: false,
    }))
    .unwrap();
    let leader_epoch = rig.partition(id).leader_epoch;
    let expected = UncleanElection {
        topic: "orders".into(),
        id,
        leader: 2,
        leader_epoch,
        passed_over: vec![1],
    };
    assert_eq!(audits(&rig), [expected]);
}
