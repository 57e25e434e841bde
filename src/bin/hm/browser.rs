//! Opens pages in the user's browser.
//!
//! The program is `$BROWSER` or that of the desktop. It is never a file of the checkout, and does not run
//! there.

use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use hm_exec::programs;

/// The programs that open a page in the browser of the desktop.
const OPENERS: [&str; 2] = ["xdg-open", "open"];

/// How long to wait for a program to fail. One that still runs after this time has opened something.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Opens a page by its URL.
///
/// # Errors
/// Returns the reason if no program could be started that opens it.
pub(crate) fn open(url: &str) -> Result<(), String> {
    let commands = commands(|name| env::var_os(name))?;
    let mut why = String::new();
    for command in &commands {
        match start(command, url) {
            Ok(()) => return Ok(()),
            Err(reason) => why = reason,
        }
    }
    Err(why)
}

/// Returns the commands to try, each as words.
fn commands(get: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Vec<String>>, String> {
    let is_set = |name: &&str| get(name).is_some_and(|value| !value.is_empty());
    if let Some(list) = get("BROWSER").filter(|list| !list.is_empty()) {
        let list = list.into_string().map_err(|_| "BROWSER is not UTF-8")?;
        let commands = list.split(':').map(|command| command.split_whitespace().map(str::to_owned).collect());
        let commands: Vec<Vec<String>> = commands.filter(|words: &Vec<String>| !words.is_empty()).collect();
        return if commands.is_empty() { Err("BROWSER names no program".into()) } else { Ok(commands) };
    }
    if ["SSH_CONNECTION", "SSH_TTY"].iter().any(is_set) {
        return Err("this is an SSH session".into());
    }
    if !["DISPLAY", "WAYLAND_DISPLAY"].iter().any(is_set) {
        return Err("there is no display".into());
    }
    Ok(OPENERS.map(|name| vec![name.to_owned()]).into())
}

/// Starts a program of the user's, and returns when it has succeeded or after [`PATIENCE`].
fn start(words: &[String], url: &str) -> Result<(), String> {
    let Some((name, arguments)) = words.split_first() else { return Err("there is no program".into()) };
    let program = find(name).ok_or_else(|| format!("`{name}` is not in PATH"))?;
    let mut arguments: Vec<String> = arguments.to_vec();
    if arguments.iter().any(|word| word.contains("%s")) {
        arguments.iter_mut().for_each(|word| *word = word.replace("%s", url));
    } else {
        arguments.push(url.to_owned());
    }
    let child = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .env("PATH", programs::search_path())
        .env_remove("PWD")
        .env_remove("OLDPWD")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for hm, and not for the browser.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("failed to start `{name}`: {error}"))?;
    match wait(child) {
        Some(Ok(status)) if !status.success() => Err(format!("`{name}` failed ({status})")),
        Some(Err(error)) => Err(format!("failed to wait for `{name}`: {error}")),
        _ => Ok(()),
    }
}

/// Waits for the end of a program, but not for long.
fn wait(mut child: Child) -> Option<io::Result<ExitStatus>> {
    let (sender, receiver) = mpsc::channel();
    // The thread ends with the program, or with this process.
    thread::spawn(move || sender.send(child.wait()));
    receiver.recv_timeout(PATIENCE).ok()
}

/// Returns the program of this name, or at this path.
fn find(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    // A relative path would lead into the checkout.
    if path.components().count() > 1 { path.is_absolute().then(|| path.to_owned()) } else { programs::find(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Vec<Vec<String>>, String> {
        commands(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_users_browser_comes_first_and_without_a_display_there_is_none() {
        let display = ("DISPLAY", ":0");
        assert_eq!(of(&[display]).unwrap(), [["xdg-open"], ["open"]]);
        assert_eq!(of(&[("WAYLAND_DISPLAY", "wayland-0")]).unwrap().len(), 2);
        assert_eq!(of(&[]).unwrap_err(), "there is no display");
        assert_eq!(of(&[display, ("SSH_CONNECTION", "a 1 b 22")]).unwrap_err(), "this is an SSH session");
        // A forwarded browser, as editors have it.
        let named = of(&[("SSH_TTY", "/dev/pts/0"), ("BROWSER", "helper --open %s: firefox :")]).unwrap();
        assert_eq!(named, [vec!["helper", "--open", "%s"], vec!["firefox"]]);
        assert!(of(&[("BROWSER", " : ")]).is_err() && of(&[("BROWSER", ""), display]).is_ok());
    }

    #[test]
    fn a_relative_path_is_no_program() {
        assert_eq!((find("./sh"), find("bin/sh")), (None, None));
        assert_eq!(find("/no/such/browser"), Some("/no/such/browser".into()));
        assert!(start(&["/no/such/browser".into()], "x").unwrap_err().contains("failed to start"));
        assert!(start(&["sh".into(), "-c".into(), "exit 3".into()], "x").unwrap_err().contains("exit status: 3"));
        assert_eq!(start(&["sh".into(), "-c".into(), "test \"$0\" = page".into()], "page"), Ok(()));
        assert_eq!(start(&["sh".into(), "-c".into(), "test %s = page".into()], "page"), Ok(()));
    }
}
