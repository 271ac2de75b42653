//! Compiles the protocol definitions; needs no program beside cargo.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    #[cfg(feature = "grpc")]
    {
        let files = protox::compile(
            [
                "fairlead/config/v1/configuration.proto",
                "fairlead/replica/v1/verdicts.proto",
                "istio/v1/auth/ca.proto",
            ],
            ["proto"],
        )?;
        tonic_prost_build::configure().compile_fds(files)?;
    }
    Ok(())
}
