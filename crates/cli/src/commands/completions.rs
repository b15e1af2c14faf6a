//! `exotherm completions`: for shells.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::output::Out;

/// Print a shell's completion script
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  exotherm completions bash > ~/.local/share/bash-completion/completions/exotherm
  exotherm completions zsh > ~/.zfunc/_exotherm
  exotherm completions fish > ~/.config/fish/completions/exotherm.fish";

pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "exotherm", &mut script);
    let mut out = Out::new();
    out.bytes(&script)?;
    out.flush()
}
