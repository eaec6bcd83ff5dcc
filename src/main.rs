use std::process::ExitCode;

/// Requests allocate and free a few small pieces each; with many in flight the system's allocator costs several times more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Of 2 MiB that the allocator touches at one end the system would give all: a proxy has a few pieces everywhere.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    teal::cli::main()
}
