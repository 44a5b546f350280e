//! Faults in the transfer of a file: interrupted, cancelled, corrupted and stalled downloads.

use super::*;

#[test]
fn a_cut_connection_resumes() {
    let server =
        Server::start(&checkpoint(), content(|before, reply| Reply { cut: (before < 2).then_some(200_000), ..reply }));
    fetch_and_compare(&server, &Home::new());
    assert_eq!(server.ranges(), [None, Some("bytes=200000-".into()), Some("bytes=400000-".into())]);
    let if_ranges: Vec<_> =
        server.log().into_iter().filter(Request::is_content).map(|r| r.header("if-range").map(str::to_owned)).collect();
    assert_eq!(if_ranges, [None, Some(server::CONTENT_ETAG.into()), Some(server::CONTENT_ETAG.into())]);
}

#[test]
fn a_cancelled_download_resumes_in_the_next_run() {
    let (server, home) = (Server::start(&checkpoint(), unaltered), Home::new());
    let mut progress = Listener { stop_after: Some(150_000), ..Listener::default() };
    let config = server.config(home.path());
    let error = open("org/tiny", &config, &mut progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(!home.snapshot(WEIGHTS).exists());
    let have = home.incomplete().metadata().unwrap().len();
    assert!(have >= 150_000 && have < weights().len() as u64);

    let offline = HubConfig { offline: true, ..config.clone() };
    assert!(matches!(open("org/tiny", &offline, &mut ()), Err(Error::Offline { .. })));

    let mut progress = Listener::default();
    open("org/tiny", &config, &mut progress).unwrap();
    assert_eq!(progress.events[0], format!("start {WEIGHTS} {have} Some({})", weights().len()));
    assert_eq!(server.ranges()[1].as_deref(), Some(format!("bytes={have}-").as_str()));
    fetch_and_compare(&server, &home);
}

#[test]
fn a_whole_file_instead_of_a_range_restarts() {
    // The server ignores ranges, or the content's etag has changed.
    let ignores = Server::start(&checkpoint(), |request, reply| match (request.is_content(), request.before) {
        (true, 0) => Reply { cut: Some(200_000), ..reply },
        (true, _) => Reply::status(200).body(weights()),
        _ => reply,
    });
    fetch_and_compare(&ignores, &Home::new());
    let changed = Server::start(
        &checkpoint(),
        content(|before, reply| match before {
            0 => Reply { cut: Some(200_000), ..reply.with("etag", "\"content-0\"") },
            _ => reply,
        }),
    );
    fetch_and_compare(&changed, &Home::new());
    assert_eq!(changed.ranges().len(), 2);
}

#[test]
fn a_wrong_range_is_not_appended() {
    let server = Server::start(
        &checkpoint(),
        content(|before, reply| match before {
            0 => Reply { cut: Some(200_000), ..reply },
            1 => reply.with("content-range", format!("bytes 100000-{}/{}", weights().len() - 1, weights().len())),
            _ => reply,
        }),
    );
    fetch_and_compare(&server, &Home::new());
    assert_eq!(server.ranges()[2], None);
}

#[test]
fn a_rejected_range_restarts() {
    let server = Server::start(
        &checkpoint(),
        content(|before, reply| match before {
            0 => Reply { cut: Some(200_000), ..reply },
            1 => Reply::status(416),
            _ => reply,
        }),
    );
    fetch_and_compare(&server, &Home::new());
}

#[test]
fn a_flipped_bit_is_detected() {
    let flip = |mut reply: Reply| {
        reply.body[300_000] ^= 0x10;
        reply
    };
    // Flipped once: the file is downloaded again.
    let server =
        Server::start(&checkpoint(), content(move |before, reply| if before == 0 { flip(reply) } else { reply }));
    fetch_and_compare(&server, &Home::new());
    assert_eq!(server.ranges(), [None, None]);

    // Always flipped: an error, and no file that looks complete.
    let (server, home) = (Server::start(&checkpoint(), content(move |_, reply| flip(reply))), Home::new());
    let error = fetch(&server, &home).unwrap_err();
    assert!(matches!(&error, Error::Format(FormatError::Checksum { file, .. }) if file == WEIGHTS), "{error}");
    assert!(!home.snapshot(WEIGHTS).exists() && !home.repo().join("refs").exists());
    assert_eq!(home.blobs().len(), 2);

    // In a small file, which has git's hash.
    let server = Server::start(&checkpoint(), |request, reply| match request.path.ends_with("/config.json") {
        true if request.method == "GET" => reply.body(CONFIG.replace("tiny", "tinY")),
        _ => reply,
    });
    let error = fetch(&server, &Home::new()).unwrap_err();
    assert!(matches!(&error, Error::Format(FormatError::Checksum { file, .. }) if file == "config.json"), "{error}");
}

#[test]
fn a_corrupted_part_of_an_earlier_run_is_replaced() {
    for left in [vec![7; 1000], vec![7; weights().len()], vec![7; weights().len() + 5]] {
        let (server, home) = (Server::start(&checkpoint(), unaltered), Home::new());
        std::fs::create_dir_all(home.repo().join("blobs")).unwrap();
        std::fs::write(home.incomplete(), left).unwrap();
        fetch_and_compare(&server, &home);
    }
    // A complete and correct part needs no transfer.
    let (server, home) = (Server::start(&checkpoint(), unaltered), Home::new());
    std::fs::create_dir_all(home.repo().join("blobs")).unwrap();
    std::fs::write(home.incomplete(), weights()).unwrap();
    fetch_and_compare(&server, &home);
    assert_eq!(server.ranges(), []);
}

#[test]
fn a_failed_download_keeps_its_part() {
    let cut = |_, reply: Reply| match reply.status {
        206 => Reply { cut: Some(0), ..reply },
        _ => Reply { cut: Some(100_000), ..reply },
    };
    let (server, home) = (Server::start(&checkpoint(), content(cut)), Home::new());
    let error = fetch(&server, &home).unwrap_err();
    assert!(matches!(&error, Error::Transfer { file, .. } if file == WEIGHTS), "{error}");
    assert!(error.hint().unwrap().contains("the download resumes"));
    assert_eq!(home.incomplete().metadata().unwrap().len(), 100_000);
}

#[test]
fn more_bytes_than_announced_are_an_error() {
    let longer = |_, reply: Reply| Reply { body: [reply.body, vec![0; 1000]].concat(), ..reply };
    let home = Home::new();
    assert!(fetch(&Server::start(&checkpoint(), content(longer)), &home).is_err());
    assert!(!home.snapshot(WEIGHTS).exists());
}

#[test]
fn requests_to_a_busy_hub_are_retried() {
    let server = Server::start(&checkpoint(), |request, reply| match request.before {
        0 => Reply::status(503),
        1 => Reply::status(429).with("retry-after", 0),
        _ => reply,
    });
    fetch_and_compare(&server, &Home::new());
    let server = Server::start(&checkpoint(), |request, reply| match request.is_head_of(WEIGHTS) {
        true => Reply::status(500),
        false => reply,
    });
    let error = fetch(&server, &Home::new()).unwrap_err();
    assert!(matches!(&error, Error::Transfer { reason, .. } if reason.contains("500")), "{error}");
}

#[test]
fn a_stalled_transfer_is_retried() {
    let server = Server::start(&checkpoint(), content(|before, reply| Reply { hangs: before == 0, ..reply }));
    let home = Home::new();
    let config = HubConfig { stall_timeout: Duration::from_millis(200), ..server.config(home.path()) };
    open("org/tiny", &config, &mut ()).unwrap();
    assert_eq!(server.ranges().len(), 2);
}
