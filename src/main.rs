//! The program `strongroom`: hands the command line to `cli` and its answer to the shell.

fn main() -> std::process::ExitCode {
    strongroom::cli::run(std::env::args_os())
}
