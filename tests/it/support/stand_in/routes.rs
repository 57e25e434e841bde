//! The stand-in's answers to everything but logs.

use chrono::{TimeDelta, Utc};
use http_body_util::BodyExt;
use hyper::Response;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Answer, Body, Closed, Fault, Recorded, Shared, State, TOKEN, error, json,
    script::{Build, Script, time},
};

/// Operations that need no token.
const OPEN: [&str; 2] = ["cliClaim", "cliRedeem"];

pub(super) fn answer(shared: &Shared, request: &Recorded) -> Answer {
    let path: Vec<&str> = request.path.trim_start_matches("/api/v0/").split('/').collect();
    let Some(operation) = operation(&request.method, &path) else {
        return error(404, "not_found", "no such route");
    };
    let mut state = shared.state();
    let fault = state.faults.get_mut(operation).and_then(std::collections::VecDeque::pop_front);
    match fault {
        Some(Fault::Status(status, code, wait)) => {
            let mut answer = error(status, code, "by request")?;
            if let Some(wait) = wait {
                answer.headers_mut().insert("retry-after", wait.into());
            }
            return Ok(answer);
        }
        Some(Fault::Close) => return Err(Closed),
        Some(Fault::CloseAfter) => {
            drop(act(&mut state, operation, &path, &request.body));
            return Err(Closed);
        }
        Some(Fault::Body(body)) => {
            let builder = Response::builder().header("content-type", "application/json");
            return Ok(builder.body(text(body)).unwrap());
        }
        Some(Fault::Redirect(to)) => {
            return Ok(Response::builder().status(307).header("location", to).body(text("")).unwrap());
        }
        None => {}
    }
    let is_known = request.authorization.as_deref() == Some(&*format!("Bearer {TOKEN}")) && !state.revoked;
    if !is_known && !OPEN.contains(&operation) {
        return error(401, "unauthorized", "the token is not valid");
    }
    act(&mut state, operation, &path, &request.body)
}

fn text(text: &'static str) -> Body {
    http_body_util::Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

/// Returns the operation's name in the service's description.
fn operation(method: &str, path: &[&str]) -> Option<&'static str> {
    Some(match (method, path) {
        ("POST", ["organizations", _, "builds"]) => "createBuildBySource",
        ("POST", ["organizations", _, "pipelines", _, "builds"]) => "createBuild",
        ("GET", ["organizations", _, "pipelines", _, "builds"]) => "listBuilds",
        ("GET", ["organizations", _, "pipelines", _, "builds", _]) => "getBuild",
        ("GET", ["organizations", _, "pipelines", _, "builds", _, "jobs"]) => "listJobs",
        ("GET", ["organizations", _, "pipelines", _, "builds", _, "jobs", _]) => "getJob",
        ("PUT", ["organizations", _, "pipelines", _, "builds", _, "cancel"]) => "cancelBuild",
        ("GET", ["organizations", _, "pipelines", _, "builds", _, "log-token"]) => "getBuildLogToken",
        ("GET", ["organizations"]) => "listOrganizations",
        ("GET", ["organizations", _, "pipelines"]) => "listPipelines",
        ("POST", ["organizations", _, "pipelines"]) => "createPipeline",
        ("GET", ["organizations", _, "pipelines", _]) => "getPipeline",
        ("GET", ["user"]) => "getCurrentUser",
        ("POST", ["auth", "logout"]) => "logout",
        ("POST", ["auth", "cli", "claim"]) => "cliClaim",
        ("POST", ["auth", "cli", "redeem"]) => "cliRedeem",
        ("GET", ["billing", "balance", _]) => "getBillingBalance",
        ("GET", ["billing", "transactions", _]) => "listBillingTransactions",
        ("GET", ["billing", "usage", _]) => "getBillingUsage",
        ("POST", ["billing", "checkout", _]) => "createCheckout",
        ("POST", ["billing", "coupon", "redeem", _]) => "redeemCoupon",
        _ => return None,
    })
}

fn act(state: &mut State, operation: &str, path: &[&str], body: &Value) -> Answer {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    match operation {
        "createBuildBySource" => {
            let wanted = (Some(text("repo_name")), text("source_slug"));
            let found = state.pipelines.iter().find(|(_, known)| **known == wanted).map(|(slug, _)| slug.clone());
            match found {
                Some(slug) => create(state, path[1], &slug, body),
                None => error(404, "pipeline_not_found", "no pipeline of that repository has this name"),
            }
        }
        "createBuild" if state.pipelines.contains_key(path[3]) => create(state, path[1], path[3], body),
        "listOrganizations" => {
            let one = |slug: &str| json!({"slug": slug, "name": slug.to_uppercase(), "created_at": time(0)});
            json(200, &json!({"data": [one("acme"), one("globex")], "next_cursor": null}))
        }
        "listPipelines" => {
            let all: Vec<_> = state.pipelines.iter().map(|(slug, known)| pipeline(slug, known)).collect();
            json(200, &json!({"data": all, "next_cursor": null}))
        }
        "createPipeline" => {
            let slug = text("name");
            let known = (body["repo_name"].as_str().map(Into::into), slug.clone());
            let answer = pipeline(&slug, &known);
            state.pipelines.insert(slug, known);
            json(201, &answer)
        }
        "getPipeline" if state.pipelines.contains_key(path[3]) => {
            json(200, &pipeline(path[3], &state.pipelines[path[3]]))
        }
        "getCurrentUser" => json(
            200,
            &json!({"uuid": Uuid::from_u128(7), "email": "ann@example.com", "name": "Ann",
            "personal_org_slug": null}),
        ),
        "logout" => Ok(Response::builder().status(204).body(self::text("")).unwrap()),
        "cliClaim" => match state.parked.remove(&text("nonce")) {
            Some(token) => json(200, &json!({ "token": token })),
            None => error(400, "cli_code_invalid", "no such nonce"),
        },
        "cliRedeem" if text("code") == "GOOD-CODE" => json(200, &json!({ "token": TOKEN })),
        "cliRedeem" => error(400, "cli_code_invalid", "no such code"),
        "getBillingBalance" => json(200, &json!({"balance_cents": 1234})),
        "listBillingTransactions" => json(
            200,
            &json!({"data": [{"id": Uuid::from_u128(9), "amount_cents": 500,
            "source": "stripe_topup", "created_at": time(0), "description": "card"}], "next_cursor": null}),
        ),
        "getBillingUsage" => json(
            200,
            &json!({"cpu_seconds": 60, "memory_gb_seconds": 120, "disk_gb_seconds": 5,
            "total_cents": 3}),
        ),
        "createCheckout" => json(200, &json!({"checkout_url": "https://pay.example/session"})),
        "redeemCoupon" => json(200, &json!({"credit_cents": 1000, "balance_cents": 2234})),
        "listBuilds" => {
            let builds = state.builds.iter().rev().filter(|build| build.pipeline == path[3]);
            json(200, &json!({"data": builds.map(Build::to_json).collect::<Vec<_>>(), "next_cursor": null}))
        }
        _ => of_build(state, operation, path),
    }
}

fn of_build(state: &mut State, operation: &str, path: &[&str]) -> Answer {
    let number = path.get(5).and_then(|number| number.parse::<i64>().ok());
    let is_it = |build: &&mut Build| build.org == path[1] && build.pipeline == path[3] && Some(build.number) == number;
    let Some(build) = state.builds.iter_mut().find(is_it) else {
        return error(404, "not_found", "there is no such thing");
    };
    match operation {
        "getBuild" => json(200, &build.to_json()),
        "cancelBuild" => {
            build.canceled.get_or_insert(build.tick);
            json(200, &build.to_json())
        }
        "listJobs" => {
            let count = if build.tick < build.script.planning { 0 } else { build.script.jobs.len() };
            let is_there = |at: &usize| build.script.jobs[*at].appears <= build.tick;
            let jobs: Vec<_> = (0..count).filter(is_there).map(|at| build.job_to_json(at)).collect();
            build.tick += usize::from(!build.waits_for_a_reader());
            json(200, &json!({ "data": jobs }))
        }
        "getJob" => match build.ids.iter().position(|id| id.to_string() == path[7]) {
            Some(at) => json(200, &build.job_to_json(at)),
            None => error(404, "not_found", "no such job"),
        },
        _ => {
            let token = format!("log-token-{}", state.log_tokens.len());
            state.log_tokens.push(token.clone());
            let expires_at = Utc::now() + TimeDelta::seconds(state.log_token_seconds);
            json(200, &json!({"token": token, "expires_at": expires_at}))
        }
    }
}

fn pipeline(slug: &str, (repo_name, name): &(Option<String>, String)) -> Value {
    json!({"slug": slug, "name": name, "repository": "https://example.com/r.git", "default_branch": "main",
        "visibility": "private", "allow_manual": true, "created_at": time(0), "repo_name": repo_name,
        "description": null})
}

fn create(state: &mut State, org: &str, pipeline: &str, request: &Value) -> Answer {
    let number = 1 + i64::try_from(state.builds.iter().filter(|build| build.pipeline == pipeline).count()).unwrap();
    let script = state.scripts.pop_front().unwrap_or_else(|| Script::new([super::Job::passes("a")]));
    let ids = script.jobs.iter().map(|_| Uuid::new_v4()).collect();
    let (org, pipeline, request) = (org.to_owned(), pipeline.to_owned(), request.clone());
    state.builds.push(Build { org, pipeline, number, script, tick: 0, canceled: None, request, ids });
    json(201, &state.builds.last().unwrap().to_json())
}
