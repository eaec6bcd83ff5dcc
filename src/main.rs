use std::process::ExitCode;

/// Requests allocate and free a few small pieces each; with many in flight the system's allocator costs several times more.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    teal::cli::main()
}
