//! A config file is either valid or every problem in it is named with its place; what the files in `config/` say is so.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::{ProptestConfig, Strategy, TestCaseError, any, prop, prop_assert, prop_oneof, proptest};
use teal::config::{
    Access, AccessLog, Address, Balance, Color, Config, Health, HostHeader, HostPattern, Limits, LogFormat, MinHealthy,
    Outlier, Probe, Problems, ProxyProtocol, Rate, ReadyWhen, Route, Secret, StatusRange, Upstream, load, parse,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

fn example() -> String {
    fs::read_to_string(folder().join("example.toml")).expect("the example is there")
}

fn read(text: &str) -> Result<Config, Problems> {
    parse(text, Path::new("teal.toml"))
}

fn valid(text: &str) -> Config {
    read(text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// The problems of a text that has some, one a line.
fn problems(text: &str) -> String {
    read(text).expect_err("the text has problems").to_string()
}

/// A listener, and then `text`.
fn with_listener(text: &str) -> String {
    format!("[[listeners]]\nlisten = \"127.0.0.1:8080\"\n{text}")
}

#[test]
fn each_bad_file_gives_the_problems_that_it_names() {
    let files = files(&folder().join("bad"));
    assert!(files.len() >= 25, "{} files", files.len());
    for file in files {
        let octets = fs::read(&file).expect("the file is readable");
        let text = String::from_utf8_lossy(&octets);
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
        let Problems(found) = load(&file).expect_err(&file.display().to_string());
        let shown = |problem: &teal::config::Problem| {
            problem.to_string().strip_prefix(&format!("{}:", file.display())).map(str::to_owned)
        };
        let found: Vec<_> = found.iter().filter_map(shown).collect();
        assert_eq!(found, expected, "{}", file.display());
    }
}

#[test]
fn the_files_we_ship_are_valid() {
    for file in files(&folder()) {
        load(&file).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn the_example_shows_every_key() {
    let documented = [
        ("", "state_dir workers shutdown_timeout shutdown_delay"),
        ("[admin]", "listen token_file token_env allowed_hosts allow deny"),
        ("[log]", "level format access"),
        ("[limits]", "connections connections_per_ip request_head request_headers request_body"),
        ("[limits]", "header_timeout idle_timeout body_timeout requests_per_second burst"),
        ("[[listeners]]", "listen tls http2 proxy_protocol trusted_proxies ready_path ready_when redirect_to_https"),
        ("[services.api]", "active blue green protocol upstream_tls balance host connect_timeout response_timeout"),
        ("[services.api]", "retries queue_timeout max_in_flight resolve_interval expose_color"),
        ("[services.api.health]", "path status interval timeout rise fall host port"),
        ("[services.api.outlier]", "consecutive_errors eject"),
        ("[services.api.switch]", "mode fence_timeout min_healthy"),
        ("[services.api.drain]", "timeout websocket sse"),
        ("[services.api.guard]", "window min_requests error_rate p99 action"),
        ("[[routes]]", "host path service strip_prefix allow deny requests_per_second burst"),
        ("[[notify]]", "kind url_file url_env events secret_env"),
    ];
    let shown = keys(&example());
    for (table, keys) in documented {
        for key in keys.split(' ') {
            assert!(shown.contains(&(table.to_owned(), key.to_owned())), "{key} in {table:?}");
        }
    }
}

/// Every key of a file with the header above it, whether commented out or not.
fn keys(text: &str) -> BTreeSet<(String, String)> {
    let mut header = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        match line.split_once(" = ") {
            Some((key, _)) if !key.contains(' ') => drop(keys.insert((header.clone(), key.to_owned()))),
            None if line.starts_with('[') => header = line.split("   #").next().unwrap_or(line).to_owned(),
            _ => {}
        }
    }
    keys
}

#[test]
fn the_example_shows_the_defaults() {
    let bare = r#"
        [[listeners]]
        listen = "0.0.0.0:8080"
        [services.api]
        blue = ["10.0.0.1:8080", "10.0.0.2:8080"]
        health = { path = "/healthz" }
        [[routes]]
        path = "/api"
        service = "api"
    "#;
    let mut bare = valid(bare);
    bare.state_dir = PathBuf::from("./teal-state");
    assert_eq!(valid(&example()), bare);
}

#[test]
fn what_is_not_in_this_version_is_refused_and_says_so() {
    let example = example();
    let is_later = |line: &&str| line.starts_with("# ") && line.ends_with("# not in this version");
    let later: Vec<_> = example.lines().filter(is_later).collect();
    assert_eq!(later.len(), 2, "{later:?}");
    for line in later {
        let Problems(found) = read(&example.replace(line, &line[2..])).expect_err(line);
        assert!(found.len() == 1 && found[0].message.contains("this version of teal"), "{line}: {found:?}");
    }
}

#[test]
fn what_a_later_version_will_choose_otherwise_may_be_spelt_out() {
    let text = with_listener(
        "proxy_protocol = \"off\"\n[services.api]\nprotocol = \"http1\"\nswitch = { mode = \"instant\" }",
    );
    assert_eq!(valid(&text), valid(&with_listener("[services.api]")));
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let folder = tempfile::tempdir().expect("a folder");
    let problem = |path: &Path| load(path).expect_err("not a config").to_string();
    let missing = folder.path().join("teal.toml");
    let expected = "teal.toml:1:1: found no such file, expected a config file; name another with --config";
    assert!(problem(&missing).ends_with(expected), "{}", problem(&missing));
    assert!(problem(folder.path()).ends_with(":1:1: found a directory, expected a config file"));
    let large = folder.path().join("large.toml");
    fs::write(&large, "#".repeat((4 << 20) + 1)).expect("the file is written");
    assert!(problem(&large).ends_with(":1:1: found more than 4 MiB, expected a config file"));
    fs::write(&large, "#".repeat(4 << 20)).expect("the file is written");
    assert!(problem(&large).contains("listeners: found none"));
}

#[test]
fn a_byte_order_mark_moves_nothing() {
    assert_eq!(
        problems("\u{feff}a = 1\n[[listeners]]\nlisten = \"[::]:80\""),
        problems("a = 1\n[[listeners]]\nlisten = \"[::]:80\"")
    );
}

#[test]
fn columns_count_characters() {
    let found = problems(&with_listener("[services.\"grün\"]\n[services.api]\nblue = [\"ü\", 5]"));
    assert!(found.contains("teal.toml:3:11: services: found the name \"grün\""), "{found}");
    assert!(found.contains("teal.toml:5:14: services.api.blue: found 5"), "{found}");
}

#[test]
fn the_token_comes_from_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    let text = |also: &str| {
        format!(
            "[admin]\nlisten = \"0.0.0.0:9900\"\ntoken_file = {path:?}\n{also}\n[[listeners]]\nlisten = \"[::]:80\""
        )
    };
    fs::write(&path, "  s3cret\n").expect("the token is written");
    let admin = valid(&text("")).admin.expect("the API is on");
    assert_eq!(admin.token, Some(Secret("s3cret".into())));
    assert!(!format!("{admin:?}").contains("s3cret"));
    assert!(problems(&text("token_env = \"PATH\"")).contains("found a token_file too, expected one of them"));
    for bad in ["", "\n", "two words", "zwölf"] {
        fs::write(&path, bad).expect("the token is written");
        assert!(problems(&text("")).contains("expected a file with the token: one line"), "{bad:?}");
    }
    fs::write(&path, "x".repeat(4097)).expect("the token is written");
    assert!(problems(&text("")).contains("expected a file with the token: larger than 4096 octets"));
    fs::remove_file(&path).expect("the token is removed");
    fs::create_dir(&path).expect("a folder is made");
    assert!(problems(&text("")).contains("expected a file with the token: not a regular file"));
}

#[test]
fn the_token_comes_from_the_environment() {
    let text =
        "[admin]\nlisten = \"0.0.0.0:9900\"\ntoken_env = \"CARGO_PKG_NAME\"\n[[listeners]]\nlisten = \"[::]:80\"";
    let admin = valid(text).admin.expect("the API is on");
    assert_eq!(admin.token, Some(Secret(env!("CARGO_PKG_NAME").into())));
}

#[test]
fn the_admin_api_needs_a_token_only_where_others_can_reach_it() {
    for listen in ["127.0.0.1:9900", "127.8.0.1:9900", "[::1]:9900", "unix:/run/teal.sock"] {
        let text = format!("admin = {{ listen = \"{listen}\" }}\n{}", with_listener(""));
        assert_eq!(valid(&text).admin.expect("the API is on").listen.to_string(), listen);
    }
    for listen in ["0.0.0.0:9900", "[::]:9900", "10.0.0.1:9900"] {
        let text = format!("admin = {{ listen = \"{listen}\" }}\n{}", with_listener(""));
        assert!(problems(&text).contains("which other machines can reach"), "{listen}");
    }
    assert_eq!(valid(&format!("admin = {{ listen = \"off\" }}\n{}", with_listener(""))).admin, None);
}

#[test]
fn what_is_written_arrives_where_it_is_meant() {
    let config = valid(
        r#"
        state_dir = "/var/lib/teal"
        workers = 3
        shutdown_timeout = "1m"
        shutdown_delay = "5s"
        admin = { listen = "unix:/run/teal.sock", allowed_hosts = ["Teal.Internal:9900"] }
        log = { level = "debug", format = "json", access = "json" }
        limits = { connections = 7, connections_per_ip = 6, idle_timeout = "9s", request_headers = 5, requests_per_second = 20 }

        [[listeners]]
        listen = "unix:/run/edge.sock"
        proxy_protocol = "require"
        trusted_proxies = ["10.1.2.3/8", "::1"]
        ready_path = "/ready"
        ready_when = "all"
        redirect_to_https = true
        connections = 4
        connections_per_ip = 0
        burst = 50
        request_head = 2048
        request_body = "1MB"
        header_timeout = "1s"
        body_timeout = "2s"

        [services.api]
        active = "green"
        blue = ["10.0.0.1:80", "[::1]:80"]
        green = ["API.internal:80", "unix:/run/api.sock"]
        balance = "hash:header:X-User"
        host = "api.example.com"
        connect_timeout = "3s"
        response_timeout = "4s"
        retries = 0
        queue_timeout = "0s"
        max_in_flight = 8
        resolve_interval = "6s"
        expose_color = true
        health = { path = "/up?x", status = ["2xx", 301], interval = "7s", timeout = "8s", rise = 9, fall = 10, host = "H" }
        outlier = { consecutive_errors = 0, eject = "11s" }
        switch = { min_healthy = "50%" }
        drain = { timeout = "0s" }

        [[routes]]
        host = "*.Example.com"
        path = "/api/"
        service = "api"
        strip_prefix = true
        allow = ["10.0.0.0/8"]
        deny = ["10.9.0.0/16", "::1"]
        requests_per_second = 7
        "#,
    );
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/teal"));
    assert_eq!((config.workers, config.connections), (3, 7));
    assert_eq!((config.shutdown_timeout, config.shutdown_delay), (Duration::from_secs(60), Duration::from_secs(5)));
    let admin = config.admin.expect("the API is on");
    assert_eq!((admin.listen, admin.token), (Address::Unix("/run/teal.sock".into()), None));
    assert_eq!(admin.allowed_hosts, ["teal.internal:9900"]);
    assert_eq!(
        (&*config.log.level, config.log.format, config.log.access),
        ("debug", LogFormat::Json, AccessLog::Stdout)
    );

    let [listener] = &config.listeners[..] else { panic!("one listener") };
    assert_eq!(listener.listen, Address::Unix("/run/edge.sock".into()));
    assert_eq!(listener.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "::1/128"]);
    assert_eq!((listener.proxy_protocol, listener.ready_when), (ProxyProtocol::Require, ReadyWhen::All));
    assert_eq!((&*listener.ready_path, listener.redirect_to_https), ("/ready", true));
    let limits = Limits {
        connections: 4,
        connections_per_ip: None,
        request_head: 2048,
        request_headers: 5,
        request_body: Some(1_000_000),
        rate: Some(rate(20, 50)),
        header_timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(9),
        body_timeout: Duration::from_secs(2),
    };
    assert_eq!(listener.limits, limits);

    let service = &config.services["api"];
    assert_eq!((&*service.name, service.active), ("api", Color::Green));
    let shown = |pool: &[Upstream]| pool.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(&service.pools.blue), ["10.0.0.1:80", "[::1]:80"]);
    assert_eq!(shown(&service.pools.green), ["api.internal:80", "unix:/run/api.sock"]);
    assert_eq!(service.balance, Balance::HashHeader("x-user".into()));
    assert_eq!(service.host, HostHeader::Fixed("api.example.com".into()));
    assert_eq!((service.connect_timeout, service.response_timeout), (Duration::from_secs(3), Duration::from_secs(4)));
    assert_eq!((service.retries, service.queue_timeout, service.max_in_flight), (0, Duration::ZERO, Some(8)));
    assert_eq!((service.resolve_interval, service.expose_color), (Duration::from_secs(6), true));
    let health = Health {
        probe: Probe::Http {
            path: "/up?x".into(),
            status: vec![StatusRange { from: 200, to: 299 }, StatusRange { from: 301, to: 301 }],
            host: Some("h".into()),
        },
        interval: Duration::from_secs(7),
        timeout: Duration::from_secs(8),
        rise: 9,
        fall: 10,
        port: None,
    };
    assert_eq!(service.health, health);
    assert_eq!(service.outlier, Outlier { consecutive_errors: None, eject: Duration::from_secs(11) });
    assert_eq!((service.switch.min_healthy, service.drain.timeout), (MinHealthy::Percent(50), Duration::ZERO));

    let host = HostPattern::Below("example.com".into());
    let network = |text: &str| text.parse().expect("a network");
    let route = Route {
        host,
        path: "/api".into(),
        service: "api".into(),
        strip_prefix: true,
        access: Access { allow: vec![network("10.0.0.0/8")], deny: vec![network("10.9.0.0/16"), network("::1/128")] },
        rate: Some(rate(7, 7)),
    };
    assert_eq!(config.routes, [route]);
}

fn rate(per_second: u32, burst: u32) -> Rate {
    let number = |number| NonZeroU32::new(number).expect("not zero");
    Rate { per_second: number(per_second), burst: number(burst) }
}

#[test]
fn the_other_forms_of_values() {
    let of = |service: &str| {
        let config = valid(&with_listener(&format!("[services.api]\n{service}")));
        (*config.services["api"]).clone()
    };
    assert_eq!(of("balance = \"hash:cookie:sid\"").balance, Balance::HashCookie("sid".into()));
    assert_eq!(of("balance = \"random\"").balance, Balance::Random);
    assert_eq!(of("host = \"upstream\"").host, HostHeader::Upstream);
    assert_eq!(of("switch = { min_healthy = 2 }").switch.min_healthy, MinHealthy::Count(2));
    assert_eq!(of("health = { interval = \"1s\", port = 9000 }").health.probe, Probe::Tcp);
    assert_eq!(of("health = { interval = \"1s\", port = 9000 }").health.port, Some(9000));
    let Probe::Http { status, .. } = of("health = { path = \"/\", status = 204 }").health.probe else { panic!("HTTP") };
    assert_eq!(status, [StatusRange { from: 204, to: 204 }]);
    assert_eq!(valid(&with_listener("[log]\naccess = \"./a.log\"")).log.access, AccessLog::File("./a.log".into()));
}

#[test]
fn a_listener_without_a_limit_of_its_own_has_the_one_for_all() {
    let config = valid(
        "limits = { connections = 10 }\nlisteners = [{ listen = \"[::]:80\" }, { listen = \"[::]:81\", connections = 5 }]",
    );
    let connections: Vec<_> = config.listeners.iter().map(|listener| listener.limits.connections).collect();
    assert_eq!((config.connections, &connections[..]), (10, &[10, 5][..]));
}

#[test]
fn a_hostile_file_gets_a_bounded_answer() {
    let keys: String = (0..10_000).map(|n| format!("key{n} = 1\n")).collect();
    let Problems(found) = read(&with_listener(&keys)).expect_err("unknown keys");
    assert_eq!(found.len(), 101);
    assert_eq!(found[100].message, "9900 more problems, shown when these are gone");
    let Problems(found) = read(&format!("a = {}", "[".repeat(1 << 20))).expect_err("nested too deep");
    assert!(found.len() <= 101);
    let Problems(found) = read(&"=\n".repeat(1000)).expect_err("not TOML");
    assert_eq!((found.len(), found[99].line), (101, 100));
    let Problems(found) = read(&"=\n".repeat(1 << 18)).expect_err("not TOML");
    assert_eq!((found.len(), found[0].line), (1, 1));
    let long = "1".repeat(1 << 18);
    for text in [format!("{long} = {long}"), format!("[services.{long}]\nretries = {long}"), format!("a = {long}s")] {
        assert!(problems(&with_listener(&text)).len() < 1000);
    }
}

/// Whether the outcome is a config, or problems in order that all stand inside the file.
fn sound(octets: &[u8], outcome: Result<Config, Problems>) -> Result<(), TestCaseError> {
    let Err(Problems(problems)) = outcome else { return Ok(()) };
    let text = String::from_utf8_lossy(octets);
    let lines: Vec<_> = text.split('\n').collect();
    prop_assert!(!problems.is_empty());
    prop_assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.column)));
    for problem in problems {
        let line = lines.get(problem.line - 1);
        prop_assert!(line.is_some_and(|line| problem.column <= line.chars().count() + 1), "{problem}");
        prop_assert!(!problem.message.is_empty());
    }
    Ok(())
}

/// Some TOML, most of it of the wrong type or out of bounds.
fn any_value() -> impl Strategy<Value = String> {
    const CHOSEN: [&str; 14] =
        ["", "0", "-1", "1e400", "nan", "true", "1979-05-27", "[]", "{}", "[[1]]", "'2xx'", "'0s'", "':80'", "'50%'"];
    let leaf = prop_oneof![
        prop::sample::select(&CHOSEN[..]).prop_map(str::to_owned),
        any::<i128>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        "\\PC{0,40}".prop_map(|text| format!("{text:?}")),
        "[0-9]{1,20}(ns|ms|s|h|y|KiB|GB|%)".prop_map(|text| format!("\"{text}\"")),
        "[^\n]{0,10}",
    ];
    leaf.prop_recursive(3, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            ("[a-z_]{1,10}", inner).prop_map(|(key, value)| format!("{{ {key} = {value} }}")),
        ]
    })
}

fn proptest_config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn any_octets_in_a_config_give_a_config_or_problems(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<Option<u8>>()), 1..20),
    ) {
        let mut octets = example().into_bytes();
        for (place, octet) in edits {
            let place = place.index(octets.len());
            match octet {
                Some(octet) => octets.insert(place, octet),
                None => drop(octets.remove(place)),
            }
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), &octets).expect("the file is written");
        sound(&octets, load(file.path()))?;
    }

    #[test]
    fn any_value_in_a_config_gives_a_config_or_problems(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
    ) {
        let example = example();
        let mut lines: Vec<_> = example.lines().map(str::to_owned).collect();
        let with_value = |line: &str| line.contains(" = ") && !line.starts_with('#');
        let places: Vec<_> = (0..lines.len()).filter(|n| with_value(&lines[*n])).collect();
        for (place, value) in changes {
            let line = &mut lines[places[place.index(places.len())]];
            let (key, _) = line.split_once(" = ").expect("it has a value");
            *line = format!("{key} = {value}");
        }
        let text = lines.join("\n");
        sound(text.as_bytes(), read(&text))?;
    }

    #[test]
    fn any_text_gives_a_config_or_problems(text in "([\\[\\]{}=,.\"'a-c0-9 \n#-]|listen|services|routes|\\PC){0,60}") {
        sound(text.as_bytes(), read(&text))?;
    }
}
