//! The `hm` commands in README and in the guide: each subcommand and each option exists.

use std::{collections::BTreeMap, process::Command};

use super::{markdown::Block, shown_to_users};
use crate::support::programs::hm;

/// Commands with subcommands of their own.
const NESTED: [&str; 3] = ["cache", "cloud", "plugin"];

/// Subcommands of `hm cloud` with subcommands of their own.
const CLOUD: [&str; 5] = ["billing", "build", "job", "org", "pipeline"];

#[test]
fn shown_commands_have_the_options_that_they_are_shown_with() {
    let (mut known, mut wrong, mut checked) = (Helps::default(), Vec::new(), 0);
    for document in shown_to_users() {
        let in_blocks = document.blocks.iter().flat_map(|block| commands(block).into_iter().map(|it| (block.line, it)));
        let in_text = document.code_spans().map(|code| (0, code.to_owned()));
        for (line, command) in in_blocks.chain(in_text) {
            // In `hm shell` there is a function `hm` that runs a step's command again.
            for hm in hm_calls(&command).into_iter().filter(|hm| hm != &["rerun"]) {
                checked += 1;
                if let Err(why) = known.check(&hm) {
                    wrong.push(format!("{}, block at line {line}: `{command}`: {why}", document.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 80, "only {checked} commands were found");
}

/// Returns the command lines of a block: of `sh` all lines, of `console` those after `$ `.
fn commands(block: &Block) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut continued = false;
    for line in &block.lines {
        let command = match &*block.language {
            "sh" => Some(&**line),
            "console" => line.strip_prefix("$ ").or(continued.then_some(&**line)),
            // The scripts of CI services.
            "yaml" => {
                line.trim_start().trim_start_matches("- ").strip_prefix("run: ").or(line.trim().strip_prefix("- "))
            }
            _ => None,
        };
        let Some(command) = command else { continue };
        let part = command.strip_suffix('\\').unwrap_or(command);
        match commands.last_mut().filter(|_| continued) {
            Some(last) => last.push_str(part),
            None => commands.push(part.into()),
        }
        continued = part.len() < command.len();
    }
    commands
}

/// Returns the arguments of each `hm` in a command line.
fn hm_calls(line: &str) -> Vec<Vec<String>> {
    let (mut calls, mut words) = (Vec::new(), Vec::new());
    for word in words_of(line).into_iter().chain([";".into()]) {
        if matches!(&*word, "|" | "||" | "&&" | "&" | ";" | "}" | ")") {
            calls.push(std::mem::take(&mut words));
        } else {
            words.push(word);
        }
    }
    let is_assignment = |word: &String| word.split_once('=').is_some_and(|(name, _)| !name.contains('-'));
    let hm = calls.into_iter().filter_map(|words: Vec<String>| {
        let words: Vec<_> = words.into_iter().skip_while(|word| is_assignment(word) || word == "{").collect();
        words.split_first().filter(|(first, _)| *first == "hm").map(|(_, args)| args.to_vec())
    });
    hm.collect()
}

/// Splits a command line at blanks. Quotes keep blanks; a comment ends the line.
fn words_of(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars().chain([' ']) {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => word.push(c),
            None if matches!(c, '\'' | '"') => quote = Some(c),
            None if c == '#' && word.is_empty() => break,
            None if c.is_whitespace() => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            None if c == ';' => {
                words.extend([std::mem::take(&mut word), ";".into()].into_iter().filter(|it| !it.is_empty()))
            }
            None => word.push(c),
        }
    }
    words
}

/// The help texts of subcommands, by name. Help runs nothing.
#[derive(Default)]
struct Helps(BTreeMap<Vec<String>, Option<String>>);

impl Helps {
    fn check(&mut self, args: &[String]) -> Result<(), String> {
        let is_word = |word: &&String| word.chars().all(|c| c.is_ascii_lowercase());
        let Some(first) = args.first().filter(is_word) else { return Ok(()) };
        let has_word = |at: usize| args.get(at).is_some_and(|word| is_word(&word));
        let depth = match NESTED.contains(&&**first) && has_word(1) {
            true if first == "cloud" && CLOUD.contains(&&*args[1]) && has_word(2) => 3,
            true => 2,
            false => 1,
        };
        let (command, rest) = args.split_at(depth);
        let help = self.help(command).ok_or_else(|| format!("there is no `hm {}`", command.join(" ")))?;
        let listed: Vec<&str> = help
            .split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'))
            .filter(|word| word.starts_with('-'))
            .collect();
        for arg in rest.iter().take_while(|arg| **arg != "--") {
            let option = arg.split_once('=').map_or(&**arg, |(option, _)| option);
            if option.starts_with('-') && option.len() > 1 && !listed.contains(&option) {
                return Err(format!("`hm {}` has no option {option}", command.join(" ")));
            }
        }
        Ok(())
    }

    fn help(&mut self, command: &[String]) -> Option<&str> {
        let entry = self.0.entry(command.to_vec()).or_insert_with(|| {
            let output = Command::new(hm()).args(command).arg("--help").output().unwrap();
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        });
        entry.as_deref()
    }
}

#[test]
fn calls_of_hm_are_found_within_command_lines() {
    let calls = |line| hm_calls(line).into_iter().map(|args| args.join(" ")).collect::<Vec<_>>();
    assert_eq!(calls("hm render ci | hm run -f -   # a comment"), ["render ci", "run -f -"]);
    assert_eq!(calls("HM_TRUST=1 hm run; hm plan"), ["run", "plan"]);
    assert_eq!(calls("hm run ci || { hm cp test:x . ; exit 1; }"), ["run ci", "cp test:x ."]);
    assert_eq!(calls("echo 'hm run --nonsense'"), [""; 0]);
}
