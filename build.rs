//! Gets the package `@harmont/hm` out of the crate `hm-dsl-engine`, for the feature `bundled-dsl`. Without
//! the feature it does nothing.
//!
//! The crate contains the package, and shows it only to the program that renders a project. So this script
//! lets the crate render an empty project, and is itself that program, which copies the package.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "bundled-dsl")]
    bundled::main();
}

#[cfg(feature = "bundled-dsl")]
mod bundled {
    use std::{env, error::Error, fs, os::unix::fs::symlink, path::PathBuf, process::Command};

    use hm_dsl_engine::{DslLanguage, engine_for};

    /// The files of the package, as the crate names them.
    const FILES: [&str; 2] = ["index.mjs", "toolchains.mjs"];

    /// The name under which the crate looks for the program first.
    const PROGRAM: &str = "bun";

    /// The variable of the process that renders: cargo's does not change its own environment.
    const RENDERS: &str = "HM_BUILD_RENDERS";

    pub(crate) fn main() {
        let result = if env::args_os().next().is_some_and(|name| PathBuf::from(name).ends_with(PROGRAM)) {
            copy_package()
        } else if env::var_os(RENDERS).is_some() {
            render()
        } else {
            start()
        };
        if let Err(error) = result {
            panic!("failed to get the package `@harmont/hm` out of the crate hm-dsl-engine: {error}");
        }
    }

    fn out_dir() -> Result<PathBuf, Box<dyn Error>> {
        Ok(env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?.into())
    }

    /// Starts this script again, with itself as the only program in `PATH`.
    fn start() -> Result<(), Box<dyn Error>> {
        let out = out_dir()?;
        let (programs, this) = (out.join("bin"), env::current_exe()?);
        for dir in [&programs, &out.join("project/.hm")] {
            fs::create_dir_all(dir)?;
        }
        for file in FILES {
            // It may be that of another version.
            let _ = fs::remove_file(out.join(file));
        }
        let _ = fs::remove_file(programs.join(PROGRAM));
        symlink(&this, programs.join(PROGRAM))?;
        let status = Command::new(this).env("PATH", programs).env(RENDERS, "1").status()?;
        match FILES.iter().find(|file| !out.join(file).exists()) {
            Some(missing) => Err(format!("no {missing}; the renderer ended with {status}").into()),
            None => Ok(()),
        }
    }

    fn render() -> Result<(), Box<dyn Error>> {
        let project = out_dir()?.join("project");
        // The crate needs a runtime of tokio. tokio itself is a dependency already, and has one name.
        tokio_test::block_on(engine_for(DslLanguage::TypeScript)?.registry_json(&project))?;
        Ok(())
    }

    fn copy_package() -> Result<(), Box<dyn Error>> {
        let (out, modules) = (out_dir()?, PathBuf::from(env::var_os("NODE_PATH").ok_or("no NODE_PATH")?));
        for file in FILES {
            fs::copy(modules.join("@harmont/hm").join(file), out.join(file))?;
        }
        Ok(())
    }
}
