//! The kernel that machines boot, and the modules that it needs to communicate with the host.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::error::Missing;

const BOOT: &str = "/boot";
const MODULES: &str = "/lib/modules";
/// The prefix of a kernel's file name.
const PREFIX: &str = "vmlinuz-";

/// The modules for the bus, the port to the host, the step's files, and the network.
const WANTED: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "virtio_net"];

/// A kernel with its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// The image to boot.
    pub(super) image: PathBuf,
    /// The modules in the order in which they must be loaded.
    pub(super) modules: Vec<PathBuf>,
}

impl Kernel {
    /// Finds a kernel, either the given one or the best in `/boot`, with its own modules.
    pub(super) fn find(given: Option<&Path>, modules: Option<&Path>) -> Result<Self, Missing> {
        let image = match given {
            Some(image) => image.to_owned(),
            None => best_of(Path::new(BOOT), |version| Path::new(MODULES).join(version).join("modules.dep").is_file())
                .ok_or(Missing::Kernel)?,
        };
        let version = image.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX)).unwrap_or_default();
        let dir = modules.map_or_else(|| Path::new(MODULES).join(version), PathBuf::from);
        let unreadable = |source| Missing::Modules { kernel: image.clone(), modules: dir.clone(), source };
        let read = |name: &str| fs::read_to_string(dir.join(name)).map_err(unreadable);
        let dependencies = read("modules.dep")?;
        let built_in = match fs::read_to_string(dir.join("modules.builtin")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(unreadable)?,
        };
        match in_order(&dependencies, &built_in) {
            Ok(paths) => Ok(Self { modules: paths.into_iter().map(|path| dir.join(path)).collect(), image }),
            Err(module) => Err(Missing::Module { kernel: image, module }),
        }
    }
}

/// Returns the newest kernel with modules. Kernels for virtual machines come before others.
fn best_of(dir: &Path, has_modules: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let names = fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let usable = names.filter(|name| {
        let version = name.strip_prefix(PREFIX);
        version.is_some_and(&has_modules) && fs::File::open(dir.join(name)).is_ok()
    });
    let best = usable.max_by_key(|name| (name.contains("cloud") || name.contains("kvm"), numbers(name)))?;
    Some(dir.join(best))
}

/// Returns the numbers in a version, by which versions are ordered.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Returns the wanted modules, each after its dependencies, or the name of a missing module.
fn in_order(dependencies: &str, built_in: &str) -> Result<Vec<String>, &'static str> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let known: HashMap<String, (&str, &str)> = lines.map(|(path, needs)| (name(path), (path, needs))).collect();
    let mut order: Vec<String> = Vec::new();
    for wanted in WANTED {
        let Some((path, needs)) = known.get(wanted) else {
            if built_in.lines().any(|path| name(path) == wanted) {
                continue;
            }
            return Err(wanted);
        };
        // Dependencies are listed nearest first, so the last must be loaded first.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// Returns the kernel's name for the module in a file.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_those_that_they_need() {
        let dependencies = "kernel/a/virtio_ring.ko: kernel/a/virtio.ko\n\
            kernel/a/virtio-pci.ko.xz: kernel/a/virtio_ring.ko kernel/a/virtio.ko\n\
            kernel/a/virtio_console.ko: kernel/a/virtio_ring.ko kernel/a/virtio.ko\n\
            kernel/a/virtiofs.ko: kernel/fuse.ko kernel/a/virtio_ring.ko kernel/a/virtio.ko\n";
        let order = in_order(dependencies, "kernel/net/virtio_net.ko\n").unwrap();
        let names: Vec<_> = order.iter().map(|path| name(path)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci", "virtio_console", "fuse", "virtiofs"]);
        assert_eq!(in_order(dependencies, ""), Err("virtio_net"));
    }

    #[test]
    fn the_newest_kernel_for_machines_is_best() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vmlinuz-6.1.0-9-cloud-amd64", "vmlinuz-6.1.0-10-cloud-amd64", "vmlinuz-6.5.0-1-amd64", "config-9"]
        {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let best = |has: fn(&str) -> bool| best_of(dir.path(), has).map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(best(|_| true).unwrap(), "vmlinuz-6.1.0-10-cloud-amd64");
        assert_eq!(best(|version| !version.contains("cloud")).unwrap(), "vmlinuz-6.5.0-1-amd64");
        assert_eq!(best(|_| false), None);
    }
}
