// What builds Kyverno's own command, with the replacement of its authors.
module kyverno-cli

go 1.26.0

require github.com/kyverno/kyverno v1.19.1

replace k8s.io/pod-security-admission => github.com/kyverno/pod-security-admission v0.0.0-20251031094455-46f20778634f
