// What builds the program that holds our policies to the types of Kyverno 1.19.1
// (main.go): the version of its API module that this release is made of.
module kyverno

go 1.26.0

require (
	github.com/kyverno/api v0.0.1-alpha.3.0.20260723090831-fb2785727f98
	sigs.k8s.io/yaml v1.6.0
)
