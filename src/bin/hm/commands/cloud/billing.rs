//! `hm cloud billing`.

use std::process::ExitCode;

use chrono::{TimeDelta, Utc};

use super::{FormatArgs, OrgArgs, Session};
use crate::{
    commands::{AnswerFormat, print, print_json, table},
    failure::Outcome,
    reporter::text,
    service::browse,
};

/// The days that usage is shown for, if no others are named.
const DAYS: i64 = 30;

/// Credit and usage of an organization
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the balance
    Balance {
        #[command(flatten)]
        org: OrgArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// List payments and charges
    Transactions {
        /// The number of entries to list
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        org: OrgArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Print what builds used
    Usage {
        /// The first day [default: 30 days ago]
        #[arg(long, value_name = "YYYY-MM-DD")]
        from: Option<String>,
        /// The last day [default: today]
        #[arg(long, value_name = "YYYY-MM-DD")]
        to: Option<String>,
        #[command(flatten)]
        org: OrgArgs,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Print the address of a page where you can pay
    Topup {
        /// The amount in US dollars, from 1 to 10000
        #[arg(value_name = "USD", value_parser = parse_cents)]
        cents: i64,
        /// Do not open the page in the browser
        #[arg(long)]
        no_browser: bool,
        #[command(flatten)]
        org: OrgArgs,
    },
    /// Redeem a coupon
    Redeem {
        /// The coupon's code
        #[arg(value_name = "CODE")]
        code: String,
        #[command(flatten)]
        org: OrgArgs,
    },
}

pub(super) fn run(command: &Command) -> Outcome<ExitCode> {
    let session = Session::open()?;
    let service = &session.service;
    match command {
        Command::Balance { org, format } => {
            let balance = session.ask("read the balance", service.balance(&session.org(org)?))?;
            match format.format {
                AnswerFormat::Json => print_json(&balance),
                AnswerFormat::Text => print(&format!("{}\n", dollars(balance.balance_cents))),
            }
        }
        Command::Transactions { limit, org, format } => {
            let all = session.ask("list the transactions", service.transactions(&session.org(org)?, *limit))?;
            if format.format == AnswerFormat::Json {
                return print_json(&all);
            }
            let rows = all.iter().map(|it| {
                let description = text::clean(it.description.as_deref().unwrap_or_default());
                let when = it.created_at.format("%Y-%m-%d").to_string();
                vec![when, dollars(it.amount_cents), it.source.to_string(), description]
            });
            print(&table(&rows.collect::<Vec<_>>()))
        }
        Command::Usage { from, to, org, format } => {
            let day = |days| (Utc::now() - TimeDelta::days(days)).format("%Y-%m-%d").to_string();
            let from = from.clone().unwrap_or_else(|| day(DAYS));
            let to = to.clone().unwrap_or_else(|| day(0));
            let usage = session.ask("read the usage", service.usage(&session.org(org)?, &from, &to))?;
            match format.format {
                AnswerFormat::Json => print_json(&usage),
                AnswerFormat::Text => print(&format!(
                    "{from} to {to}: {} (CPU {} s, memory {} GB s, disk {} GB s)\n",
                    dollars(usage.total_cents),
                    usage.cpu_seconds,
                    usage.memory_gb_seconds,
                    usage.disk_gb_seconds
                )),
            }
        }
        Command::Topup { cents, no_browser, org } => {
            let url = session.ask("prepare the payment", service.checkout(&session.org(org)?, *cents))?;
            let printed = print(&format!("pay {} at {}\n", dollars(*cents), text::clean(&url)))?;
            // What opens other addresses is not known here.
            if !no_browser && url.starts_with("https://") {
                browse(&url);
            }
            Ok(printed)
        }
        Command::Redeem { code, org } => {
            let redeemed = session.ask("redeem the coupon", service.redeem_coupon(&session.org(org)?, code))?;
            let (credit, balance) = (dollars(redeemed.credit_cents), dollars(redeemed.balance_cents));
            print(&format!("redeemed {credit}; the balance is {balance}\n"))
        }
    }
}

fn dollars(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    format!("{sign}${}.{:02}", cents / 100, cents % 100)
}

/// Parses an amount in dollars: `20`, or `12.50`.
fn parse_cents(text: &str) -> Result<i64, String> {
    let expected = || "expected an amount from 1 to 10000, such as 20 or 12.50".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, "00"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || whole.len() > 5 || part.len() > 2 {
        return Err(expected());
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| expected());
    let cents = number(whole)? * 100 + number(part)? * if part.len() == 1 { 10 } else { 1 };
    if (100..=1_000_000).contains(&cents) { Ok(cents) } else { Err(expected()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_whole_cents() {
        for (text, cents) in [("1", 100), ("12.5", 1250), ("12.05", 1205), ("10000", 1_000_000)] {
            assert_eq!(parse_cents(text), Ok(cents), "{text}");
        }
        for text in ["", "0.99", "10000.01", "1.234", "-5", "1e3", "1.", ".5"] {
            assert!(parse_cents(text).is_err(), "{text}");
        }
        assert_eq!([dollars(5), dollars(-1250)], ["$0.05", "-$12.50"]);
    }
}
