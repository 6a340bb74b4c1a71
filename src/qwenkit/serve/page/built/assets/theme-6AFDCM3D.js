try{let e=JSON.parse(localStorage.getItem("qwenkit-preferences")??"{}");(e.theme==="light"||e.theme==="dark")&&(document.documentElement.dataset.theme=e.theme)}catch{}
