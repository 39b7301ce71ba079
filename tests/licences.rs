//! Every dependency has a licence that deny.toml allows.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say so")]

use std::process::Command;

#[derive(serde::Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(serde::Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let root = env!("CARGO_MANIFEST_DIR");
    let deny: toml::Table = std::fs::read_to_string(format!("{root}/deny.toml")).unwrap().parse().unwrap();
    let allowed: Vec<&str> = deny["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .map(|licence| licence.as_str().unwrap())
        .collect();
    // Offline: the build that runs this test has fetched every package already.
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
            env!("BUILD_TARGET"),
        ])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    assert!(metadata.packages.len() > 50, "only {} packages listed", metadata.packages.len());

    let refused: Vec<String> = metadata
        .packages
        .iter()
        .filter(|package| {
            let Some(licence) = &package.license else { return true };
            // Old manifests separate alternatives with a slash.
            let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX).unwrap();
            !expression.evaluate(|requirement| allowed.contains(&requirement.to_string().as_str()))
        })
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.license))
        .collect();
    assert!(refused.is_empty(), "licences that deny.toml does not allow:\n{}", refused.join("\n"));
}

#[derive(serde::Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(serde::Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

/// What `[sources]` in deny.toml says, without cargo-deny: nothing from a git repository or another registry, and every
/// package's content fixed by a checksum.
#[test]
fn every_dependency_comes_from_the_registry_and_is_fixed_by_a_checksum() {
    for file in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let lock: Lock = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(lock.package.len() > 50, "{file}: only {} packages", lock.package.len());
        for Locked { name, version, source, checksum } in lock.package {
            if name.starts_with("lemniscate") {
                continue;
            }
            let registry = "registry+https://github.com/rust-lang/crates.io-index";
            assert_eq!(source.as_deref(), Some(registry), "{file}: {name} {version}");
            assert!(checksum.is_some_and(|sum| sum.len() == 64), "{file}: {name} {version} has no checksum");
        }
    }
}
