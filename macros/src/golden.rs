//! Snapshots of expansions, so that a change to the code that users compile is visible in review. `BLESS=1
//! cargo test -p hm-exec-macros` updates them.

use std::{env, fs, path::Path};

use syn::{Item, parse_quote};

use crate::derive;

fn check(name: &str, input: &syn::DeriveInput) {
    let file = syn::parse2(derive(input)).expect("the expansion is a file of items");
    let expansion = prettyplease::unparse(&file);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expand").join(name).with_extension("rs");
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &expansion).expect("the golden file can be written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(expansion == golden, "{name} expands to:\n{expansion}");
}

#[test]
fn a_set_with_a_default_a_renamed_runner_and_a_parameter() {
    check(
        "named",
        &parse_quote! {
            pub struct Runners<R> where R: Clone {
                #[runner(default)]
                pub sandbox: SandboxRunner,
                pub vm: VmRunner<R>,
                #[runner(name = "vm-big")]
                pub big: vm::Big,
            }
        },
    );
}

#[test]
fn a_set_in_a_facade_with_two_sets_in_it() {
    check(
        "flattened",
        &parse_quote! {
            #[runner(crate = "facade::hm_exec")]
            struct Runners<S> {
                #[runner(flatten, default)]
                library: S,
                vm: VmRunner,
                #[runner(flatten)]
                plugins: RunnerRegistry,
            }
        },
    );
}

#[test]
fn a_tuple_struct() {
    check(
        "tuple",
        &parse_quote!(
            struct Only(Noop);
        ),
    );
}

#[test]
fn a_wrong_set_still_implements_the_trait() {
    let input = parse_quote! {
        enum Runners<R> { Noop(R) }
    };
    check("wrong", &input);
    let file: syn::File = syn::parse2(derive(&input)).expect("the expansion is a file of items");
    assert!(file.items.iter().any(|item| matches!(item, Item::Impl(_))));
    assert!(file.items.iter().any(|item| matches!(item, Item::Macro(_))), "and says what is wrong");
}

/// Every input yields an expansion, never a panic.
#[test]
fn no_input_panics() {
    let inputs: [syn::DeriveInput; 8] = [
        parse_quote!(
            struct Unit;
        ),
        parse_quote!(union Union { a: u8 }),
        parse_quote!(
            struct Lifetimes<'a, const N: usize>(&'a [u8; N]);
        ),
        parse_quote!(
            struct Bad {
                #[runner = 1]
                a: A,
                #[runner(name)]
                b: B,
                #[runner(name = 1, default = 2)]
                c: C,
            }
        ),
        parse_quote!(
            struct Bad {
                #[runner(default(x))]
                a: A,
                #[runner(,)]
                b: B,
            }
        ),
        parse_quote!(
            enum Never {}
        ),
        parse_quote!(
            #[runner(crate = 5)]
            #[runner(flatten)]
            struct Bad {
                #[runner(crate = "x", flatten, flatten = 1)]
                a: A,
                #[runner(flatten(x), name = "b")]
                b: B,
            }
        ),
        parse_quote!(
            #[runner(crate = "no path", crate = "")]
            struct Only(#[runner(flatten)] Set);
        ),
    ];
    for input in inputs {
        let expansion = derive(&input).to_string();
        assert!(expansion.contains("RunnerSet for"), "{expansion}");
    }
}
