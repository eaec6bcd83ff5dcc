//! Whatever a config file says, it means one thing, or what is wrong is said in lines that stand in the file.
#![no_main]

#[allow(dead_code, reason = "a target uses a part of it")]
#[path = "../support/spelling.rs"]
mod spelling;

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use teal::config::parse;

const PIECES: &[&str] = &[
    "[[listeners]]\nlisten = \"127.0.0.1:0\"\n",
    "[services.a]\nblue = [\"127.0.0.1:1\"]\n",
    "[[routes]]\npath = \"/\"\nservice = \"a\"\n",
    "[limits]\n",
    "[admin]\n",
    "[log]\n",
    "[services.a.drain]\n",
    "[services.a.switch]\n",
    "[services.a.health]\n",
    "active = \"green\"\n",
    "green = [\"[::1]:80\", \"unix:/a\", \"a.b:1\"]\n",
    "connections = ",
    "request_head = \"64KiB\"\n",
    "idle_timeout = \"1s\"\n",
    "websocket = { quiet = \"1s\", code = 1012 }\n",
    "sse = { retry = \"1s..5s\" }\n",
    "mode = \"fence\"\n",
    "balance = \"hash:cookie:a\"\n",
    "host = \"*.a.b\"\n",
    "path = \"/a/\"\n",
    "trusted_proxies = [\"10.0.0.0/8\"]\n",
    "requests_per_second = 1\n",
    "min_healthy = \"50%\"\n",
    " = ",
    "\"",
    "[",
    "]",
    "{",
    "}",
    "\n",
    "'''",
    "\u{e9}",
    "18446744073709551616",
    "1.5",
    "true",
    "1979-05-27T07:32:00Z",
];

fuzz_target!(|data: &[u8]| {
    let Ok(text) = String::from_utf8(spelling::spelt(data, PIECES)) else { return };
    let path = Path::new("fuzz.toml");
    let parsed = parse(&text, path);
    match &parsed {
        Ok(_) => {
            let more = format!("{text}\n# nothing");
            assert!(parse(&more, path) == parsed, "a comment has changed it");
        }
        Err(problems) => {
            assert!(!problems.0.is_empty(), "nothing is wrong with it");
            let lines = text.split('\n').count();
            for problem in &problems.0 {
                assert!((1..=lines).contains(&problem.line) && problem.column > 0, "{problem}");
                assert!(!problem.to_string().contains(char::is_control), "more than a line: {problem:?}");
            }
        }
    }
});
