//! The environment variables that code of the project sees while it renders pipelines.
//!
//! A variable that is not named here may be a secret, so it is withheld: a pipeline could put it into a step,
//! and a step has network access. What continuous integration reports about the commit is not secret.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    path::Path,
};

/// The variable that lists more variables to show, separated by commas.
pub(super) const MORE: &str = "HM_RENDER_ENV";

/// The variables that are shown if they are set.
const SHOWN: [&str; 77] = [
    "BRANCH",
    "BRANCH_NAME",
    "BUILDKITE",
    "BUILDKITE_BRANCH",
    "BUILDKITE_BUILD_NUMBER",
    "BUILDKITE_COMMIT",
    "BUILDKITE_PIPELINE_SLUG",
    "BUILDKITE_PULL_REQUEST",
    "BUILDKITE_PULL_REQUEST_BASE_BRANCH",
    "BUILDKITE_TAG",
    "BUILD_NUMBER",
    "CHANGE_BRANCH",
    "CHANGE_ID",
    "CHANGE_TARGET",
    "CI",
    "CIRCLECI",
    "CIRCLE_BRANCH",
    "CIRCLE_BUILD_NUM",
    "CIRCLE_SHA1",
    "CIRCLE_TAG",
    "CI_COMMIT_BRANCH",
    "CI_COMMIT_REF_NAME",
    "CI_COMMIT_REF_SLUG",
    "CI_COMMIT_SHA",
    "CI_COMMIT_SHORT_SHA",
    "CI_COMMIT_TAG",
    "CI_DEFAULT_BRANCH",
    "CI_JOB_NAME",
    "CI_JOB_STAGE",
    "CI_MERGE_REQUEST_IID",
    "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME",
    "CI_PIPELINE_ID",
    "CI_PIPELINE_IID",
    "CI_PIPELINE_SOURCE",
    "CI_PROJECT_NAME",
    "CI_PROJECT_NAMESPACE",
    "CI_PROJECT_PATH",
    "COMMIT",
    "COMMIT_SHA",
    "GITHUB_ACTIONS",
    "GITHUB_ACTOR",
    "GITHUB_BASE_REF",
    "GITHUB_EVENT_NAME",
    "GITHUB_HEAD_REF",
    "GITHUB_JOB",
    "GITHUB_REF",
    "GITHUB_REF_NAME",
    "GITHUB_REF_TYPE",
    "GITHUB_REPOSITORY",
    "GITHUB_REPOSITORY_OWNER",
    "GITHUB_RUN_ATTEMPT",
    "GITHUB_RUN_ID",
    "GITHUB_RUN_NUMBER",
    "GITHUB_SERVER_URL",
    "GITHUB_SHA",
    "GITHUB_WORKFLOW",
    "GITLAB_CI",
    "GIT_BRANCH",
    "GIT_COMMIT",
    "HM_PIPELINE_ORG",
    "HM_PIPELINE_SLUG",
    "JENKINS_URL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "NO_COLOR",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONUTF8",
    "PYTHONWARNINGS",
    "SOURCE_DATE_EPOCH",
    "TAG_NAME",
    "TRAVIS",
    "TZ",
];

/// The variables that the rendering sets itself.
const OWN: [&str; 2] = ["HOME", "PATH"];

/// Variables that the standard library reads by itself and does not require.
const INCIDENTAL: [&str; 8] = ["COLUMNS", "LINES", "LOGNAME", "TEMP", "TERM", "TMP", "TMPDIR", "USER"];

/// Returns the variables for a rendering by the interpreter `program`.
pub(super) fn shown(program: &Path) -> Vec<(OsString, OsString)> {
    let mut path = program.parent().map(Path::as_os_str).unwrap_or_default().to_owned();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let own = [("HOME".into(), "/tmp".into()), ("PATH".into(), path)];
    let names: BTreeSet<OsString> = SHOWN.iter().map(OsString::from).chain(more()).collect();
    let of_the_user = names.into_iter().filter(|name| !OWN.iter().any(|own| name == own));
    own.into_iter().chain(of_the_user.filter_map(|name| env::var_os(&name).map(|value| (name, value)))).collect()
}

/// Returns those variables of `missed`, which a rendering tried to read, that are set here but withheld.
pub(super) fn withheld(missed: &[String]) -> Vec<&str> {
    let is_withheld = |name: &&str| {
        !INCIDENTAL.contains(name) && !name.is_empty() && !name.contains(['=', '\0']) && env::var_os(name).is_some()
    };
    missed.iter().map(String::as_str).filter(is_withheld).collect()
}

/// Returns the additional variables that the user wants to show.
fn more() -> impl Iterator<Item = OsString> {
    let names = env::var_os(MORE).unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<OsString> = names.split([',', ' ']).filter(|name| is_name(name)).map(OsString::from).collect();
    names.into_iter()
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// Returns the absolute entries of a list of directories such as `PATH`. Relative ones would be resolved in
/// the checkout.
pub(super) fn absolute(list: &OsStr) -> impl Iterator<Item = std::path::PathBuf> {
    env::split_paths(list).filter(|dir| dir.is_absolute()).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_no_credential() {
        for name in SHOWN {
            let is_credential = ["TOKEN", "SECRET", "PASSWORD", "KEY", "_URL"].iter().any(|word| name.contains(word));
            assert!(!is_credential || matches!(name, "GITHUB_SERVER_URL" | "JENKINS_URL"), "{name}");
        }
        assert!(SHOWN.windows(2).all(|pair| pair[0] < pair[1]), "sorted");
    }

    #[test]
    fn only_absolute_directories_are_looked_into() {
        let dirs: Vec<_> = absolute(OsStr::new(":.:bin:/usr/bin::/bin:")).collect();
        assert_eq!(dirs, ["/usr/bin", "/bin"].map(std::path::PathBuf::from));
    }
}
