//! A member of a group against a broker in memory: what it says while it cannot come in.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tidemark_client::{
    Client, ClientConfig, ErrorCode, GroupConfig,
    protocol::message::Api,
    testing::{FakeBroker, Fault},
};

#[tokio::test]
async fn who_waits_for_the_place_of_its_instance_says_so_once() {
    let broker = FakeBroker::start().await.unwrap();
    let client = Client::connect(ClientConfig::new(broker.address())).await.unwrap();
    for _ in 0..3 {
        let fault = Fault::Refuse(ErrorCode::UnreleasedInstance);
        broker.inject(Api::GroupHeartbeat, fault);
    }
    let mut config = GroupConfig::new("g").topic("t");
    config.instance = Some("one".to_owned());
    let told = Arc::<Mutex<Vec<String>>>::default();
    let notes = told.clone();
    let mut member = client
        .group_consumer(config)
        .on_waiting(move |why| notes.lock().unwrap().push(why.to_owned()));
    // The broker has nothing else to say about groups: then it is over.
    while member.poll(Duration::from_secs(5)).await.is_ok() {}
    assert!(broker.requests(Api::GroupHeartbeat) > 3, "it goes on asking");
    assert_eq!(*told.lock().unwrap(), ["injected"]);
}
