//! The paths of `on_change` policies.

use serde_json::Value;

use super::Cache;

/// An invalid path of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrongPath {
    /// The path, as JSON if it is not text.
    pub(crate) path: String,
    pub(crate) message: &'static str,
}

/// Returns the paths of a policy and of the policies that it is composed of, sorted and without duplicates.
pub(crate) fn on_change_paths(cache: &Cache) -> Result<Vec<&str>, WrongPath> {
    let (mut paths, mut rest) = (Vec::new(), Vec::new());
    visit(&cache.policy, |name| cache.parameters.get(name), &mut paths, &mut rest)?;
    while let Some(policy) = rest.pop() {
        let name = policy.get("policy").and_then(Value::as_str).unwrap_or_default();
        visit(name, |name| policy.get(name), &mut paths, &mut rest)?;
    }
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

fn visit<'v>(
    policy: &str,
    parameter: impl Fn(&str) -> Option<&'v Value>,
    paths: &mut Vec<&'v str>,
    rest: &mut Vec<&'v Value>,
) -> Result<(), WrongPath> {
    match policy {
        "on_change" => {
            let no_list =
                |value: &Value| WrongPath { path: value.to_string(), message: "`paths` must be a list of strings" };
            match parameter("paths") {
                None | Some(Value::Null) => {}
                Some(Value::Array(list)) => {
                    for path in list {
                        let text = path.as_str().ok_or_else(|| no_list(path))?;
                        if let Some(message) = leaves_the_project(text) {
                            return Err(WrongPath { path: text.to_owned(), message });
                        }
                        paths.push(text);
                    }
                }
                Some(other) => return Err(no_list(other)),
            }
        }
        "compose" => rest.extend(parameter("sub_policies").and_then(Value::as_array).into_iter().flatten()),
        _ => {}
    }
    Ok(())
}

fn leaves_the_project(path: &str) -> Option<&'static str> {
    if path.starts_with('/') {
        Some("the path must be relative to the source directory")
    } else if path.split('/').any(|name| name == "..") {
        Some("the path leads out of the source directory")
    } else if path.contains('\0') {
        Some("the path contains a NUL byte")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(cache: &str) -> Result<Vec<String>, String> {
        let cache: Cache = serde_json::from_str(cache).unwrap();
        let paths = on_change_paths(&cache).map_err(|wrong| wrong.path)?;
        Ok(paths.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn paths_are_found_however_deep_and_each_once() {
        assert_eq!(paths(r#"{"policy":"forever","key":"k","paths":["a"]}"#).unwrap(), [""; 0]);
        assert_eq!(paths(r#"{"policy":"on_change","key":"k"}"#).unwrap(), [""; 0]);
        assert_eq!(paths(r#"{"policy":"on_change","key":"k","paths":["b","a","b"]}"#).unwrap(), ["a", "b"]);
        let deep = r#"{"policy":"compose","key":"k","sub_policies":[{"policy":"on_change","paths":["./c"]},
            {"policy":"compose","sub_policies":[{"policy":"on_change","paths":["a/**"]},{"policy":"forever"}]}]}"#;
        assert_eq!(paths(deep).unwrap(), ["./c", "a/**"]);
    }

    #[test]
    fn what_leaves_the_project_or_is_no_path_is_refused() {
        for wrong in ["/etc/passwd", "../x", "a/../../x", "a/..", "a\\u0000b"] {
            assert!(paths(&format!(r#"{{"policy":"on_change","key":"k","paths":["{wrong}"]}}"#)).is_err(), "{wrong}");
        }
        assert_eq!(paths(r#"{"policy":"on_change","key":"k","paths":["a",1]}"#), Err("1".into()));
        assert_eq!(paths(r#"{"policy":"on_change","key":"k","paths":"a"}"#), Err("\"a\"".into()));
        let deep = r#"{"policy":"compose","key":"k","sub_policies":[{"policy":"on_change","paths":["../x"]}]}"#;
        assert_eq!(paths(deep), Err("../x".into()));
        assert_eq!(paths(r#"{"policy":"on_change","key":"k","paths":["a..b/...", "..a"]}"#).unwrap().len(), 2);
    }
}
