//! What containerd's stream URIs ask for.

use std::path::PathBuf;

use crate::error::{Error, Kind, Result};

/// Where one stream goes. The relay knows one variant from another only when it is opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nowhere: `/dev/null`.
    Null,
    /// A named pipe that containerd or its client made and opens at the other end.
    Fifo(PathBuf),
}

impl Target {
    /// Reads `uri`: empty, an absolute path, or `fifo:///path` (containerd: core/runtime/v2/README.md, "I/O").
    ///
    /// # Errors
    /// `Unimplemented` for another scheme, by its name; `InvalidArgument` for a path that is not absolute.
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let path = match uri.split_once("://") {
            None if uri.is_empty() => return Ok(Self::Null),
            None => uri,
            Some(("fifo", path)) => path,
            Some((scheme, _)) => {
                return Err(Error::new(Kind::Unimplemented, format!("stream {uri}: scheme {scheme} is not supported")));
            }
        };
        if !path.starts_with('/') {
            return Err(Error::new(Kind::InvalidArgument, format!("stream {uri}: not an absolute path")));
        }
        Ok(Self::Fifo(path.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_fifo_uri_are_the_same() {
        assert_eq!(Target::parse("/run/x").unwrap(), Target::Fifo("/run/x".into()));
        assert_eq!(Target::parse("fifo:///run/x").unwrap(), Target::Fifo("/run/x".into()));
        assert_eq!(Target::parse("").unwrap(), Target::Null);
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        for scheme in ["file", "binary", "ttrpc+unix"] {
            let e = Target::parse(&format!("{scheme}:///x")).unwrap_err();
            assert_eq!(e.kind(), Kind::Unimplemented);
            assert!(e.to_string().contains(&format!("scheme {scheme} ")), "{e}");
        }
    }

    #[test]
    fn a_path_must_be_absolute() {
        for uri in ["x", "fifo://x/y", "fifo://"] {
            assert_eq!(Target::parse(uri).unwrap_err().kind(), Kind::InvalidArgument, "{uri}");
        }
    }
}
