//! What a file is, by its name and a look at its text.

use tree_sitter::Language;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Go,
    Python,
    Java,
    Kotlin,
    CSharp,
    JavaScript,
    TypeScript,
    Rust,
    C,
    Cpp,
    Ruby,
    Php,
    Yaml,
    Json,
    Toml,
    Properties,
    Xml,
    Nginx,
    Apache,
    HaProxy,
    Caddy,
    Dockerfile,
    Shell,
    Systemd,
    Terraform,
}

/// The kinds with their names in rule files.
const NAMES: &[(&str, Kind)] = &[
    ("go", Kind::Go),
    ("python", Kind::Python),
    ("java", Kind::Java),
    ("kotlin", Kind::Kotlin),
    ("csharp", Kind::CSharp),
    ("javascript", Kind::JavaScript),
    ("typescript", Kind::TypeScript),
    ("rust", Kind::Rust),
    ("c", Kind::C),
    ("cpp", Kind::Cpp),
    ("ruby", Kind::Ruby),
    ("php", Kind::Php),
    ("yaml", Kind::Yaml),
    ("json", Kind::Json),
    ("toml", Kind::Toml),
    ("properties", Kind::Properties),
    ("xml", Kind::Xml),
    ("nginx", Kind::Nginx),
    ("apache", Kind::Apache),
    ("haproxy", Kind::HaProxy),
    ("caddy", Kind::Caddy),
    ("dockerfile", Kind::Dockerfile),
    ("shell", Kind::Shell),
    ("systemd", Kind::Systemd),
    ("terraform", Kind::Terraform),
];

impl Kind {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, k)| *k)
    }

    /// The names that [`Kind::parse`] knows.
    pub(crate) fn names() -> String {
        NAMES.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
    }

    /// In lower case.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, k)| *k == self).map_or("", |(n, _)| n)
    }

    /// The grammar, for source code.
    pub(crate) fn language(self) -> Option<Language> {
        Some(match self {
            Kind::Go => tree_sitter_go::LANGUAGE.into(),
            Kind::Python => tree_sitter_python::LANGUAGE.into(),
            Kind::Java => tree_sitter_java::LANGUAGE.into(),
            Kind::Kotlin => tree_sitter_kotlin_ng::LANGUAGE.into(),
            Kind::CSharp => tree_sitter_c_sharp::LANGUAGE.into(),
            Kind::JavaScript => tree_sitter_javascript::LANGUAGE.into(),
            Kind::TypeScript => tree_sitter_typescript::LANGUAGE_TSX.into(),
            Kind::Rust => tree_sitter_rust::LANGUAGE.into(),
            Kind::C | Kind::Cpp => tree_sitter_cpp::LANGUAGE.into(),
            Kind::Ruby => tree_sitter_ruby::LANGUAGE.into(),
            Kind::Php => tree_sitter_php::LANGUAGE_PHP.into(),
            _ => return None,
        })
    }

    /// What a file of this name and text is; `None` for what no rule is about.
    pub fn of(path: &str, text: &str) -> Option<Self> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let lower = name.to_ascii_lowercase();
        let (stem, extension) = lower.rsplit_once('.').unwrap_or((&lower, ""));
        let by_text = || configuration(text);
        // `api.Dockerfile`, `Dockerfile.nginx`, but not `dockerfile_test.go`.
        const OTHERS: [&str; 18] = [
            "go", "py", "js", "ts", "rs", "java", "kt", "cs", "rb", "php", "c", "h", "cpp", "yaml",
            "yml", "json", "toml", "md",
        ];
        if lower.contains("dockerfile") && !OTHERS.contains(&extension) {
            return Some(Kind::Dockerfile);
        }
        Some(match extension {
            "go" => Kind::Go,
            "py" | "pyw" | "pyi" => Kind::Python,
            "java" => Kind::Java,
            "kt" | "kts" => Kind::Kotlin,
            "cs" => Kind::CSharp,
            "js" | "mjs" | "cjs" | "jsx" => Kind::JavaScript,
            "ts" | "tsx" | "mts" | "cts" => Kind::TypeScript,
            "rs" => Kind::Rust,
            "c" => Kind::C,
            "h" | "cc" | "cpp" | "cxx" | "hh" | "hpp" | "hxx" | "inl" | "ipp" | "tpp" | "ino"
            | "pde" | "mm" | "cu" => Kind::Cpp,
            "rb" | "rake" | "ru" => Kind::Ruby,
            "php" | "phps" | "php3" | "php4" | "php5" | "php7" | "php8" | "phtml" | "inc" => {
                Kind::Php
            }
            // Jsonnet and CUE write what YAML says with the same keys.
            "yaml" | "yml" | "jsonnet" | "libsonnet" | "cue" => Kind::Yaml,
            "tpl" | "tmpl" | "tmp" | "j2" | "template" | "erb" | "tftpl" | "ctmpl" | "gotmpl"
            | "jinja" | "jinja2" | "mustache" | "hbs" | "liquid" | "epp" | "eps" | "njk"
            | "twig" | "tt"
                if !stem.is_empty() =>
            {
                return Self::of(stem, text).or_else(by_text).or(Some(Kind::Yaml));
            }
            // A file of that kind for one place or as a pattern: `site.conf.dev`, `application.yml.sample`.
            "dev" | "prod" | "staging" | "example" | "sample" | "dist" | "default" | "local"
            | "in"
                if !stem.is_empty() =>
            {
                return Self::of(stem, text);
            }
            // Kubernetes knows its objects in both forms, and so do the rules.
            "json" | "jsonc" | "json5" if is_kubernetes(text) => Kind::Yaml,
            "json" | "jsonc" | "json5" => Kind::Json,
            "toml" => Kind::Toml,
            "properties" | "env" | "cnf" | "ini" | "ovpn" | "hocon" => Kind::Properties,
            // Postfix, and dot files of tools.
            "cf" | "curlrc" | "wgetrc" | "npmrc" | "netrc" | "gitconfig" => Kind::Properties,
            "xml" => Kind::Xml,
            "tf" | "tfvars" | "hcl" | "nomad" | "alloy" | "river" => Kind::Terraform,
            "sh" | "bash" | "zsh" | "ksh" | "fish" | "command" | "ps1" | "bat" | "cmd" | "mk" => {
                Kind::Shell
            }
            "service" | "socket" | "timer" | "container" => Kind::Systemd,
            "kubeconfig" => Kind::Yaml,
            "dockerfile" | "containerfile" => Kind::Dockerfile,
            _ if lower.contains("dockerfile") => Kind::Dockerfile,
            "caddyfile" | "caddyfiletest" => Kind::Caddy,
            "conf" if path.contains(".service.d/") => Kind::Systemd,
            "conf" | "cfg" | "vhost" | "htaccess" | "nginx" | "apache" | "config" => {
                return by_text().or(match lower.as_str() {
                    n if n.contains("nginx") => Some(Kind::Nginx),
                    n if n.contains("httpd") && !n.contains("lighttpd") || n.contains("apache") => {
                        Some(Kind::Apache)
                    }
                    n if n.contains("haproxy") => Some(Kind::HaProxy),
                    _ => Some(Kind::Properties),
                });
            }
            _ if lower.contains("dockerfile") || lower.contains("containerfile") => {
                Kind::Dockerfile
            }
            _ if lower.contains("caddyfile") => Kind::Caddy,
            _ if lower.starts_with(".env") => Kind::Properties,
            _ if matches!(lower.as_str(), "gemfile" | "rakefile" | "puma.rb") => Kind::Ruby,
            _ if ["makefile", "jenkinsfile", "justfile"]
                .iter()
                .any(|n| lower.ends_with(n) || lower.starts_with(n)) =>
            {
                Kind::Shell
            }
            _ if lower.contains("haproxy") => Kind::HaProxy,
            // Annotations of ingress-nginx.
            _ if lower.starts_with("nginx") || lower.ends_with("-snippet") => Kind::Nginx,
            _ if text.starts_with("#!") => match text.lines().next().unwrap_or_default() {
                l if l.contains("python") => Kind::Python,
                l if l.contains("node") => Kind::JavaScript,
                l if l.contains("ruby") => Kind::Ruby,
                l if l.contains("php") => Kind::Php,
                l if l.contains("sh") => Kind::Shell,
                _ => return None,
            },
            // Documentation shows what it warns of.
            "md" | "markdown" | "mdx" | "rst" | "adoc" | "txt" | "html" | "htm" | "tex" | "log"
            | "csv" | "diff" | "patch" | "svg" | "css" | "lock" => return None,
            // Sites of nginx and Apache have the names of hosts, or none that says anything.
            _ => return by_text(),
        })
    }
}

/// Whether a text is an object of Kubernetes, in whatever notation.
fn is_kubernetes(text: &str) -> bool {
    let key = |line: &str, name: &str| {
        let line = line.trim_start_matches([' ', '\t', '-', '{', '"', '\'']);
        line.strip_prefix(name).is_some_and(|rest| {
            rest.trim_start_matches(['"', '\'']).trim_start().starts_with([':', '='])
        })
    };
    let mut lines = text.lines().take(MOST_LINES);
    text.contains("apiVersion")
        && lines.any(|l| key(l, "apiVersion"))
        && text.lines().take(MOST_LINES).any(|l| key(l, "kind"))
}

/// As far as a text is looked at to see what it is.
const MOST_LINES: usize = 2000;

/// What a configuration file is for, by words that only one kind of it uses.
fn configuration(text: &str) -> Option<Kind> {
    let lines = || text.lines().take(MOST_LINES).map(str::trim_start);
    let any = |is: &dyn Fn(&str) -> bool| lines().any(is);
    let begins = |words: &[&str]| any(&|l| words.iter().any(|w| l.starts_with(w)));
    // A directive of nginx ends with a semicolon, or opens a block.
    let directive = |words: &[&str], end: &[char]| {
        any(&|l| words.iter().any(|w| l.starts_with(w)) && l.trim_end().ends_with(end))
    };
    if text.trim_start().starts_with("<?xml") {
        return Some(Kind::Xml);
    }
    if begins(&[
        "SSLVerifyClient",
        "SSLEngine",
        "<VirtualHost",
        "SSLProxy",
        "SSLCertificateFile",
        "ProxyPass ",
    ]) {
        return Some(Kind::Apache);
    }
    // SPIRE, Vault, Consul and Nomad write HCL; `server {` is not theirs alone.
    if begins(&["plugins {", "listener \"", "trust_domain", "ports {"])
        && text.contains('{')
        && text.contains('=')
    {
        return Some(Kind::Terraform);
    }
    // Behind a semicolon there may be a comment.
    let nginx = |l: &str| {
        const WORDS: [&str; 6] = [
            "ssl_verify_client",
            "ssl_certificate",
            "proxy_pass ",
            "proxy_ssl_",
            "grpc_pass ",
            "proxy_set_header ",
        ];
        WORDS.iter().any(|w| l.starts_with(w)) && l.contains(';')
    };
    if any(&nginx)
        || directive(&["server {", "server{", "upstream ", "location "], &['{'])
        || any(&|l| l == "server")
    {
        return Some(Kind::Nginx);
    }
    let section = |l: &str| {
        let mut words = l.split_whitespace();
        matches!(words.next(), Some("frontend" | "backend" | "listen")) && words.next().is_some()
    };
    if any(&section) && begins(&["bind ", "server ", "mode "]) {
        return Some(Kind::HaProxy);
    }
    let words = [
        "reverse_proxy ",
        "client_auth {",
        "tls_insecure_skip_verify",
        "handle_path ",
        "file_server",
    ];
    if begins(&words) && any(&|l| l.trim_end().ends_with('{')) {
        return Some(Kind::Caddy);
    }
    if is_kubernetes(text) || begins(&["static_resources:"]) {
        return Some(Kind::Yaml);
    }
    // The terms of Erlang, in which RabbitMQ and EMQX are configured.
    if begins(&["[{rabbit", "{rabbit", "{ssl_options", "{ssl_listeners"]) {
        return Some(Kind::Properties);
    }
    None
}
