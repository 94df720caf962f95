// What builds the program that holds our resources to policy-controller (main.go), with
// the replacements of its authors.
module policy-controller

go 1.26.0

require (
	github.com/google/go-containerregistry v0.20.3
	github.com/sigstore/policy-controller v0.13.1
	sigs.k8s.io/yaml v1.4.0
)

replace (
	github.com/golang/glog => github.com/jdolitsky/glog v0.0.0-20220729172235-78744e90d087
	k8s.io/code-generator => k8s.io/code-generator v0.29.4
	k8s.io/kube-openapi => k8s.io/kube-openapi v0.0.0-20231010175941-2dd684a91f00
)
