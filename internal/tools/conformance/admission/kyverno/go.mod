// What builds the program that holds our policies to Kyverno (main.go), with the
// replacement of its authors.
module kyverno

go 1.26.0

require (
	github.com/kyverno/api v0.0.1-alpha.3.0.20260723090831-fb2785727f98
	github.com/kyverno/kyverno v1.19.1
	sigs.k8s.io/yaml v1.6.0
)

replace k8s.io/pod-security-admission => github.com/kyverno/pod-security-admission v0.0.0-20251031094455-46f20778634f
