//! Empty: this manifest only pins a source archive.
