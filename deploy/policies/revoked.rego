# Denies what was signed with a revoked certificate, for OPA, conftest and Gatekeeper.
#
# data.feed is the CA's feed: curl https://ca.example.com/revocations/feed.json, as
# {"feed": …}. The input is the output of `mayfly verify --json`, or a pod (or a review of
# one) whose images are named by digest.
package mayfly.revoked

import rego.v1

# The feed itself has to be there: without one nothing is known.
deny contains "there is no feed of revocations: data.feed has no statements" if not data.feed.statements

deny contains message if {
	some signature in input.signatures
	some statement in data.feed.statements
	statement.serial == signature.serial
	statement.authority == signature.authority
	message := sprintf("the certificate %s, by which %s signed, is revoked (%s)", [statement.serial, signature.san, statement.reason])
}

# By image: of statements whose reference is the image's digest.
deny contains message if {
	some image in images
	some statement in data.feed.statements
	digest := regex.find_n(`sha256:[0-9a-f]{64}`, statement.reference, 1)[0]
	endswith(image, concat("", ["@", digest]))
	message := sprintf("the image %s is revoked (%s)", [image, statement.reason])
}

pods contains input

pods contains input.request.object # Kubernetes' AdmissionReview

pods contains input.review.object # Gatekeeper's

images contains container.image if {
	some pod in pods
	some kind in ["containers", "initContainers", "ephemeralContainers"]
	some container in pod.spec[kind]
}
