// Security key as second factor (Web Authentication Level 2): fetches the options, asks the key and
// posts its answer. Texts and mode come from the page's data attributes; req, hmac and authenticator
// from the page's own address.
"use strict";

const page = document.getElementById("key");
const alertBox = document.getElementById("key-error");
const waiting = document.getElementById("key-waiting");
const button = document.getElementById("key-button");

// A Problem is an error whose message is meant for people.
class Problem extends Error {}

function fromBase64url(text) {
	const binary = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
	return Uint8Array.from(binary, (c) => c.charCodeAt(0)).buffer;
}

function toBase64url(buffer) {
	const binary = Array.from(new Uint8Array(buffer), (b) => String.fromCharCode(b)).join("");
	return btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

async function post(step, body) {
	const address = new URLSearchParams(location.search);
	const query = new URLSearchParams();
	for (const name of ["req", "hmac", "authenticator"]) {
		query.set(name, address.get(name) || "");
	}
	const request = { method: "POST" };
	if (body) {
		request.headers = { "Content-Type": "application/json" };
		request.body = JSON.stringify(body);
	}
	const response = await fetch(`${location.pathname}/${page.dataset.mode}/${step}?${query}`, request);
	const answer = await response.json();
	if (!response.ok) {
		throw new Problem(answer.error || page.dataset.failed);
	}
	return answer;
}

async function register() {
	const options = await post("begin");
	const { publicKey } = options;
	publicKey.challenge = fromBase64url(publicKey.challenge);
	publicKey.user.id = fromBase64url(publicKey.user.id);
	for (const known of publicKey.excludeCredentials || []) {
		known.id = fromBase64url(known.id);
	}
	const made = await navigator.credentials.create(options);
	return answerOf(made, ["attestationObject", "clientDataJSON"]);
}

async function login() {
	const options = await post("begin");
	const { publicKey } = options;
	publicKey.challenge = fromBase64url(publicKey.challenge);
	for (const known of publicKey.allowCredentials || []) {
		known.id = fromBase64url(known.id);
	}
	const made = await navigator.credentials.get(options);
	return answerOf(made, ["authenticatorData", "clientDataJSON", "signature", "userHandle"]);
}

function answerOf(credential, names) {
	const response = {};
	for (const name of names) {
		const value = credential.response[name];
		response[name] = value ? toBase64url(value) : "";
	}
	return { id: credential.id, rawId: toBase64url(credential.rawId), type: credential.type, response };
}

function messageOf(error) {
	if (error instanceof Problem) {
		return error.message;
	}
	switch (error.name) {
	case "NotAllowedError":
		return page.dataset.cancelled;
	case "SecurityError":
		return page.dataset.notAllowed;
	default:
		return page.dataset.failed;
	}
}

function fail(message) {
	waiting.hidden = true;
	button.hidden = false;
	alertBox.textContent = message;
	alertBox.hidden = false;
	button.focus();
}

async function start() {
	alertBox.hidden = true;
	button.hidden = true;
	waiting.hidden = false;
	try {
		const body = page.dataset.mode === "register" ? await register() : await login();
		const done = await post("finish", body);
		if (!done.redirect) {
			throw new Problem(page.dataset.failed);
		}
		location.assign(done.redirect);
	} catch (error) {
		fail(messageOf(error));
	}
}

if (!window.PublicKeyCredential) {
	alertBox.textContent = page.dataset.unsupported;
	alertBox.hidden = false;
} else {
	button.hidden = false;
	button.addEventListener("click", start);
	// Registering changes the account, so it waits for the click.
	if (page.dataset.mode === "login") {
		start();
	}
}
