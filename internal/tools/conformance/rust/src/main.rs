//! Signs and verifies with sigstore-rust.
//!
//!   sigstore-conformance sign TRUSTED_ROOT SIGNING_CONFIG TOKEN BUNDLE FILE
//!   sigstore-conformance verify TRUSTED_ROOT SIGNING_CONFIG ISSUER NAME BUNDLE FILE
//!
//! TOKEN is a file. Where TRUSTED_ROOT is a URL, it is that of a TUF repository, and
//! SIGNING_CONFIG the root file to start from. A refusal ends with status 1.
use sigstore_sign::oidc::IdentityToken;
use sigstore_sign::trust_root::tuf::fetch_trust_material;
use sigstore_sign::trust_root::{SigningConfig, TrustedRoot, TufConfig};
use sigstore_sign::{SigningContext, SigningServices};
use sigstore_verify::types::Bundle;
use sigstore_verify::{verify, VerificationPolicy};
use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args[1..]))
}

async fn run(args: &[String]) -> Result<(), Box<dyn Error>> {
    let (root, config) = if args[1].starts_with("http") {
        let tuf = TufConfig::custom_from_file(&args[1], &args[2])?;
        fetch_trust_material(tuf.with_cache_dir(Path::new(&std::env::var("HOME")?).join("tuf-rust"))).await?
    } else {
        (TrustedRoot::from_file(&args[1])?, SigningConfig::from_file(&args[2])?)
    };
    if args[0] == "sign" {
        let services = SigningServices::from_signing_config(&config)?;
        let token = IdentityToken::from_jwt(fs::read_to_string(&args[3])?.trim())?;
        let artifact = fs::read(&args[5])?;
        let signer = SigningContext::new(services).signer(token);
        let bundle = signer.sign(artifact.as_slice()).await?;
        fs::write(&args[4], bundle.to_json()?)?;
    } else {
        let policy = VerificationPolicy::new(args[4].as_str(), args[3].as_str());
        let bundle = Bundle::from_json(&fs::read_to_string(&args[5])?)?;
        let artifact = fs::read(&args[6])?;
        verify(artifact.as_slice(), &bundle, &policy, &root)?;
    }
    Ok(())
}
